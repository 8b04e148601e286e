"""The application: routes, and errors in the shape of whoever asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

import narrows
from narrows.server import (
    administration,
    anthropic_messages,
    infill,
    models,
    openai_chat,
    openai_completions,
    openai_responses,
    operations,
    page,
    schema,
)
from narrows.server.accounting import Ledger
from narrows.server.backend import Backend
from narrows.server.body import told
from narrows.server.door import Door
from narrows.server.errors import ApiError, error_response
from narrows.server.ledger_accounts import LedgerAccounts
from narrows.server.service import Service
from narrows.server.settings import Settings
from narrows.server.visit import Visit

_REASONS = {
    404: "there is no such address here; /openapi.json lists all that there are.",
    405: "this address does not take this method; /openapi.json says which it takes.",
}


class Application(FastAPI):
    """FastAPI's, with a document of what we answer."""

    def openapi(self) -> dict[str, Any]:
        """What /openapi.json says."""
        if self.openapi_schema is None:
            self.openapi_schema = schema.mended(super().openapi())
        return self.openapi_schema


def create_app(backends: Sequence[Backend], accounts: Ledger, settings: Settings | None = None) -> FastAPI:
    """The server of these models, as an ASGI application. Its accounts can be administered where a database holds
    them."""
    service = Service(backends, accounts, settings or Settings())
    app = Application(
        title="Narrows",
        version=narrows.__version__,
        docs_url=None,  # these load scripts from elsewhere
        redoc_url=None,
        strict_content_type=False,
        redirect_slashes=False,  # an address is right or wrong
        exception_handlers={HTTPException: _refused, RequestValidationError: _invalid},
    )
    app.state.service = service
    app.include_router(operations.router)
    app.include_router(page.router)
    app.include_router(infill.router)
    for prefix in ("/v1", "", "/beta"):  # the last two are DeepSeek's
        for router in (models.router, openai_chat.router, openai_completions.router, openai_responses.router):
            app.include_router(router, prefix=prefix, include_in_schema=prefix == "/v1")
    for prefix in ("/v1", "/anthropic/v1"):
        app.include_router(anthropic_messages.router, prefix=prefix, include_in_schema=prefix == "/v1")
    app.include_router(models.router, prefix="/anthropic/v1", include_in_schema=False)
    if isinstance(accounts, LedgerAccounts):
        app.include_router(administration.router(accounts))
    app.add_middleware(
        Door, settings=service.settings, ledger=accounts, metrics=service.metrics, threads=service.threads
    )
    return app


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if not isinstance(error, ApiError):
        told = _REASONS.get(error.status_code, f"{error.detail}.")
        error = ApiError(error.status_code, told, headers=dict(error.headers or {}))
    visit = Visit.of(request.scope)
    return error_response(error, visit.protocol, visit.id)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return await _refused(request, told(error.errors()))
