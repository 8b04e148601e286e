"""The list of models, in a shape that both OpenAI's and Anthropic's clients read."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request

from narrows.server.backend import ModelInfo
from narrows.server.schema import errors
from narrows.server.service import Service

router = APIRouter()


@router.get("/models", tags=["OpenAI", "Anthropic"], responses=errors())
async def models(request: Request) -> dict[str, Any]:
    """All models that are served here."""
    told = [_told(backend.info) for backend in Service.of(request).backends.values()]
    ends = {"first_id": told[0]["id"], "last_id": told[-1]["id"], "has_more": False}
    return {"object": "list", "data": told, **ends}


@router.get("/models/{name:path}", tags=["OpenAI", "Anthropic"], responses=errors(404))
async def model(request: Request, name: str) -> dict[str, Any]:
    """One of them."""
    return _told(Service.of(request).backend(name).info)


def _told(info: ModelInfo) -> dict[str, Any]:
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.created))
    openai = {"id": info.name, "object": "model", "created": info.created, "owned_by": "narrows"}
    anthropic: dict[str, Any] = {
        "type": "model",
        "display_name": info.name,
        "created_at": when,
        "max_input_tokens": info.context,
        "max_tokens": info.context,
    }
    own = {"context_length": info.context, "trained_context": info.trained, "chat": info.chat}
    return {**openai, **anthropic, **own}
