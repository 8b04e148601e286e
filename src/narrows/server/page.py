"""The page for the browser: files that are the same for everybody, so they need no key; what they ask for does."""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files

from fastapi import APIRouter, Request, Response

_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# The page runs and asks what this server gave it and nothing else, and stands in nobody's frame.
_HEADERS = {
    "cache-control": "no-cache",  # asked for again every time, and mostly answered by 304
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class _File:
    """One of the page's files, read once."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content, self._type = content, _TYPES[name.rpartition(".")[2]]
        self._tag = f'"{sha256(content).hexdigest()[:32]}"'

    def answer(self, request: Request) -> Response:
        """The file, or 304 to whoever has it already."""
        headers = {**_HEADERS, "etag": self._tag}
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self._content, media_type=self._type, headers=headers)


_FILES = {
    "/" if file.name == "index.html" else f"/page/{file.name}": _File(file.name, file.read_bytes())
    for file in files("narrows.server").joinpath("page").iterdir()
    if file.name.rpartition(".")[2] in _TYPES  # and not what an editor or a system leaves beside them
}

PATHS = frozenset(_FILES)
"""Of the page and all that it loads."""

router = APIRouter(include_in_schema=False)


async def _answer(request: Request) -> Response:
    return _FILES[request.scope["path"]].answer(request)


for _path in sorted(PATHS):
    router.add_api_route(_path, _answer, methods=["GET", "HEAD"])
