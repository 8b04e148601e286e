"""Whether the server lives, whether it takes requests, and its figures."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from narrows.errors import NarrowsError
from narrows.server.errors import ApiError
from narrows.server.schema import errors, text
from narrows.server.service import Service

router = APIRouter(tags=["Operations"])


@router.get("/health", openapi_extra={"security": []}, responses=errors())
async def health() -> dict[str, str]:
    """The process lives. Beside the page, the one answer that needs no key."""
    return {"status": "ok"}


@router.get("/ready", responses=errors())
async def ready(request: Request) -> dict[str, str]:
    """Requests are taken; 503 where the server is about to end, or a model cannot run any more."""
    service = Service.of(request)
    service.lifecycle.check()
    try:
        for backend in service.backends.values():
            await service.threads.run("engine", backend.stats)
    except NarrowsError:
        raise ApiError(503, f"the model {backend.info.name!r} has ended; start the server anew.") from None
    return {"status": "ready"}


@router.get("/metrics", response_class=Response, responses=text(403))
async def metrics(request: Request) -> Response:
    """Figures for Prometheus, to keys with the scope "metrics"."""
    service = Service.of(request)
    service.check_scope(request, "metrics")
    return Response(await service.threads.run("engine", service.metrics.text), media_type=CONTENT_TYPE_LATEST)
