"""llama.cpp's infill, which editors' plugins speak: what stands at a cursor, with pieces of other files around it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field, FiniteFloat

from narrows.engine.context import context_tokens
from narrows.engine.request import SamplingParameters
from narrows.server.backend import Backend, Job, ModelInfo
from narrows.server.body import Body, Penalty, Route, Share, Short, Texts
from narrows.server.chat import stop_strings
from narrows.server.infill_answer import InfillAnswer
from narrows.server.schema import generation
from narrows.server.service import Plan, Service
from narrows.text.fim import arranged

router = APIRouter(route_class=Route)

# Tokens of a middle where a request does not say how many: what the plugins ask for.
_DEFAULT_TOKENS = 128

# BOS and the control tokens of FIM.
_CONTROLS = 4

# Steps of a window by which what other files hold is cut, so that what a prompt begins with seldom moves.
_STEPS = 16

_Count = Annotated[int, Field(ge=-1, le=2**31)]
_Milliseconds = Annotated[FiniteFloat, Field(ge=0)]


class Extra(Body):
    """A piece of another file. Models are not told its name: they were trained without."""

    text: str


class InfillBody(Body):
    """POST /infill. `prompt` is what of the middle is there already, as a rule the line up to the cursor.

    Without a `temperature` the likeliest token is taken, which is what the `infill` sampler is about. `n_predict` 0
    reads the prompt alone, so that it is known the next time. `n_indent` and `t_max_predict_ms` end a middle at a line
    that is indented less, or at the first line's end behind that time.
    """

    model: Short | None = None
    input_prefix: str = ""
    input_suffix: str = ""
    input_extra: Annotated[list[Extra], Field(fail_fast=True)] | None = None
    prompt: str = ""
    n_predict: _Count | None = None
    n_indent: Annotated[int, Field(ge=0, le=2**31)] | None = None
    t_max_predict_ms: _Milliseconds | None = None
    temperature: Annotated[FiniteFloat, Field(ge=0, le=2)] | None = None
    top_k: _Count | None = None
    top_p: Share | None = None
    min_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Field(ge=-1, lt=2**64)] | None = None
    stop: Texts | None = None
    stream: bool | None = None
    response_fields: Annotated[list[Short], Field(fail_fast=True)] | None = None


@router.post("/infill", tags=["llama.cpp"], responses=generation())
async def infill(request: Request, body: InfillBody) -> Response:
    """Fill in the middle."""
    service = Service.of(request)
    settings = service.settings

    def plan(backend: Backend) -> Plan:
        asked = _DEFAULT_TOKENS if body.n_predict is None or body.n_predict < 0 else body.n_predict
        tokens = max(1, min(asked, _window(backend.info) // 2))
        prompt, truncated = prompt_of(backend.info, body, tokens)
        job = Job(prompt, _parameters(body, tokens), timeout=settings.request_seconds)
        answer = InfillAnswer(
            backend.info,
            job,
            warming=asked == 0,
            truncated=truncated,
            stop=stop_strings(body.stop),
            indent=body.n_indent or 0,
            seconds=None if body.t_max_predict_ms is None else body.t_max_predict_ms / 1000,
            fields=body.response_fields or (),
        )
        return Plan([job], answer, body.stream is True, "default")

    return await service.answer(request, body.model or next(iter(service.backends)), plan)


def _window(info: ModelInfo) -> int:
    """Tokens of prompt and middle: no more than the model was trained for."""
    return min(info.trained or info.context, info.context)


def prompt_of(info: ModelInfo, body: InfillBody, tokens: int) -> tuple[Sequence[int], bool]:
    """The prompt of a middle of so many tokens, and whether something of the file had to be left out.

    Pieces of other files, the last nearest to the file, have a quarter of the window at most, wherever the cursor is
    and whatever is asked for: so what a prompt begins with stays known. Of the rest a quarter is the suffix's, unless
    that needs less.
    """
    tokenizer, layout, window = info.tokenizer, info.fim_layout, _window(info)
    texts = [extra.text for extra in reversed(body.input_extra or [])]
    context = context_tokens(tokenizer, texts, window // 4, max(1, window // _STEPS))
    left = window - tokens - _CONTROLS - len(context)
    if not body.input_suffix:
        before = tokenizer.encode(body.input_prefix + body.prompt)
        return [tokenizer.bos_id, *context, *before[-left:]], len(before) > left
    if layout == "spm":  # the prefix stands last, and the middle that was begun is a part of it
        before, begun = tokenizer.encode(body.input_prefix + body.prompt), []
    else:
        before, begun = tokenizer.encode(body.input_prefix), tokenizer.encode(body.prompt)[-(left // 2) :]
    after = tokenizer.encode(body.input_suffix)
    suffix = after[: left // 4]
    prefix = before[-(left - len(suffix) - len(begun)) :]
    truncated = len(prefix) < len(before) or len(suffix) < len(after)
    return [tokenizer.bos_id, *context, *arranged(tokenizer, prefix, suffix, layout), *begun], truncated


def _parameters(body: InfillBody, tokens: int) -> SamplingParameters:
    given: dict[str, Any] = {
        "temperature": body.temperature,
        "top_k": body.top_k if body.top_k is not None and body.top_k > 0 else None,  # llama.cpp: 0 keeps all
        "top_p": body.top_p,
        "min_p": body.min_p,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "seed": None if body.seed == -1 else body.seed,
    }
    return SamplingParameters(max_tokens=tokens, **{name: value for name, value in given.items() if value is not None})
