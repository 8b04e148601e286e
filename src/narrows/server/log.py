"""The server's log: a JSON object a line, and never what a request or a reply says."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any, TextIO

from narrows.server.visit import Visit

_log = logging.getLogger("narrows.server")


class JsonLines(logging.Formatter):
    """Time, level and message of a record, and the fields that `say` gave it."""

    def format(self, record: logging.LogRecord) -> str:
        when = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{when}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"message": record.getMessage(), **getattr(record, "fields", {})}
        return json.dumps(line, default=str)


def log_to(stream: TextIO) -> None:
    """Let the server's own records, and uvicorn's errors, go to `stream`."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name, level in (("narrows", logging.INFO), ("uvicorn.error", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False


def say(message: str, **fields: Any) -> None:
    """A record of the server's."""
    _log.info(message, extra={"fields": fields})


def log_visit(visit: Visit) -> None:
    """What came of a request. Of a fault of ours the kind and the places, not its message, which may quote a text."""
    fields: dict[str, Any] = {
        "id": visit.id,
        "key": visit.account.id if visit.account is not None else None,
        "method": visit.method,
        "path": visit.path,
        "status": visit.status,
        "seconds": round(time.monotonic() - visit.began, 4),
    }
    if visit.model is not None:
        fields |= {"model": visit.model, "outcome": visit.outcome}
    if visit.usage is not None:
        usage = visit.usage
        fields |= {"prompt": usage.prompt, "cached": usage.hit, "output": usage.output, "reasoning": usage.reasoning}
    if visit.first_token is not None:
        fields["first_token_seconds"] = round(visit.first_token - visit.began, 4)
    if visit.fault is None:
        _log.info("request", extra={"fields": fields})
        return
    fields["fault"] = type(visit.fault).__name__
    places = traceback.extract_tb(visit.fault.__traceback__)
    fields["places"] = [f"{place.filename}:{place.lineno} {place.name}" for place in places]
    _log.error("request", extra={"fields": fields})
