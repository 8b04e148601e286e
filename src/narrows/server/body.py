"""Request bodies: what all of them share, and what is said of one that is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat
from pydantic_core import from_json

from narrows.server.errors import ApiError

# Lists end at their first fault: a body may hold millions of them, and one is told.
Objects = Annotated[list[dict[str, Any]], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]
TokenIds = Annotated[list[int], Field(fail_fast=True)]

# Names and the like; texts may be as long as a body.
Short = Annotated[str, Field(max_length=512)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
Temperature = Annotated[FiniteFloat, Field(ge=0, le=2)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Penalty = Annotated[FiniteFloat, Field(ge=-2, le=2)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**64)]


class Body(BaseModel):
    """A JSON object whose types are meant: no number is read from a string. Fields that we do not know are ignored, as
    clients send many that say nothing about the reply."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)


class Route(APIRoute):
    """A route whose body is JSON as the standard has it. Python's own reader takes NaN and halves of characters too,
    and what was taken may have to be sent back."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler of a request."""
        handle = super().get_route_handler()

        async def read(request: Request) -> Response:
            return await handle(_JsonRequest(request.scope, request.receive))

        return read


class _JsonRequest(Request):
    async def json(self) -> Any:
        try:
            value = from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise ApiError(400, f"the body is not valid JSON ({error}); send an object.") from None
        try:
            json.dumps(value, allow_nan=False)
        except ValueError:  # 1e999 has become infinite
            raise ApiError(400, "the body holds a number that is too large for a float; send a smaller one.") from None
        return value


def unsigned(seed: int | None) -> int | None:
    """A seed of 64 bits, as the engine takes it."""
    return None if seed is None else seed % 2**64


def refuse(fields: Mapping[str, Any], instead: Mapping[str, str]) -> None:
    """400 for a field that asks for what there is not; `instead` says by name what to do."""
    for name, advice in instead.items():
        if fields.get(name) is not None:
            raise ApiError(400, f"{name} is not supported; {advice}.", code="unsupported_parameter", param=name)


def told(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """What a client reads of the errors of pydantic: of the first field's alternatives, the one that went farthest."""
    field = errors[0]["loc"][:2]
    first = max((error for error in errors if error["loc"][:2] == field), key=lambda error: len(error["loc"]))
    place = _place(first["loc"][1:])  # behind "body"
    if not place:
        return ApiError(
            400, "the body is no JSON object, or not called one; send one, with Content-Type: application/json."
        )
    reason = str(first["msg"]).removeprefix("Value error, ")
    return ApiError(400, f"{place} is wrong ({reason[:1].lower()}{reason[1:]}); correct it.", param=place)


def _place(location: Sequence[str | int]) -> str:
    """`messages[3].role`. Names of alternatives that were tried, which pydantic puts behind a field's, are left out."""
    place = ""
    for one in location:
        if isinstance(one, int):
            place += f"[{one}]"
        elif one.isidentifier() and one not in _ALTERNATIVES:
            place += f".{one}" if place else one
    return place


_ALTERNATIVES = {"str", "int", "float", "bool", "list", "dict"}
