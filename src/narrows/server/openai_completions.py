"""OpenAI's and DeepSeek's text completions: what follows a prompt, or stands between a prompt and a suffix."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from pydantic import Field

from narrows.engine.request import SamplingParameters, check_prompt
from narrows.engine.sampling import Sampled
from narrows.engine.sequence import Drawn, Finished, Scored
from narrows.engine.text import TextStream
from narrows.errors import UsageError
from narrows.server.answer import Answer
from narrows.server.backend import Backend, Job
from narrows.server.body import Route, Texts, TokenIds
from narrows.server.chat import stop_strings
from narrows.server.errors import ApiError, error_body
from narrows.server.openai_sampling import SampledBody
from narrows.server.openai_wire import tier_of, usage_of
from narrows.server.schema import generation
from narrows.server.service import Plan, Service, priority_of, room
from narrows.server.settings import Settings
from narrows.server.sse import event
from narrows.text.fim import Layout, fim_prompt, spelled
from narrows.text.tokenizer import Tokenizer

router = APIRouter(route_class=Route)

# Scores of prompts, with their alternatives, that one answer may repeat.
_MOST_REPEATED = 1_000_000

# What OpenAI's endpoint writes where a request does not say how much.
_DEFAULT_TOKENS = 16


class CompletionBody(SampledBody):
    """POST /v1/completions. Text begins behind BOS; token ids are taken as they are. A text in which FIM's control
    tokens are spelled around a prefix and a suffix asks for the middle. `context`, which is ours: texts of whole files
    to read before the prompt, in the order in which a project's files were trained on, the nearest last."""

    prompt: str | Texts | TokenIds | Annotated[list[TokenIds], Field(fail_fast=True)]
    suffix: str | None = None
    context: Texts | None = None
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None


@router.post(
    "/completions", tags=["OpenAI"], responses=generation("id", "object", "created", "model", "choices", "usage")
)
async def completions(request: Request, body: CompletionBody) -> Response:
    """Continue a text, or fill in its middle."""
    service = Service.of(request)

    def plan(backend: Backend) -> Plan:
        jobs = _jobs(backend, body, service.settings)
        return Plan(jobs, CompletionAnswer(backend, body, jobs), body.stream is True, tier_of(body.service_tier))

    return await service.answer(request, body.model, plan)


def _jobs(backend: Backend, body: CompletionBody, settings: Settings) -> list[Job]:
    if body.echo and body.suffix:
        raise UsageError("echo puts the prompt before the answer, and a suffix stands behind; leave one of them out.")
    if body.echo and body.context:
        raise UsageError("echo repeats the prompt, and files stand before it in context; leave one of them out.")
    n = body.n or 1
    if body.best_of is not None and body.best_of != n:
        raise UsageError(f"best_of is {body.best_of} and n is {n}; ask for as many answers as you want to have.")
    many = _many(body)
    if len(many) * n > settings.most_choices:  # before any of them is encoded
        raise UsageError(f"{len(many)} prompts with n {n} are given; ask for {settings.most_choices} answers or fewer.")
    prompts = _prompts(backend, body, many)
    repeated = sum(map(len, prompts)) * n * (1 + (body.logprobs or 0))
    if body.echo and repeated > _MOST_REPEATED:
        raise UsageError(
            f"echo would repeat {repeated:,} scores of the prompts; ask for {_MOST_REPEATED:,} or fewer at once."
        )
    parameters = {
        "stop": stop_strings(body.stop),
        "n": n,
        "logprobs": body.logprobs,
        "prompt_logprobs": body.logprobs if body.echo else None,
        **body.sampling(),
    }
    return [
        Job(
            prompt,
            SamplingParameters(max_tokens=room(backend, prompt, body.max_tokens, _DEFAULT_TOKENS), **parameters),
            priority=priority_of(tier_of(body.service_tier)),
            timeout=settings.request_seconds,
        )
        for prompt in prompts
    ]


def _many(body: CompletionBody) -> Sequence[Any]:
    """The prompts, each a text or token ids."""
    given = body.prompt
    if not isinstance(given, str) and not given:
        raise UsageError("prompt is an empty list; give text, token ids, or several of either.")
    return given if isinstance(given, list) and not isinstance(given[0], int) else [given]


def _prompts(backend: Backend, body: CompletionBody, many: Sequence[Any]) -> list[Sequence[int]]:
    """The prompts as token ids. UsageError for what is none, or for more of them together than a model holds."""
    info = backend.info
    files = [token for text in body.context or () for token in (*info.tokenizer.encode(text), info.tokenizer.eos_id)]
    prompts: list[Sequence[int]] = []
    for one in many:
        if isinstance(one, str):
            prompts.append(_text_prompt(info.tokenizer, one, body.suffix, files, info.fim_layout))
        elif body.context is not None:
            raise UsageError("context goes with a prompt of text, not of token ids; encode both as one prompt.")
        elif body.suffix is not None:
            raise UsageError("a suffix goes with a prompt of text, not of token ids; encode both as one prompt.")
        else:
            assert isinstance(one, list)
            prompts.append(check_prompt(one, info.vocab_size, info.context))
        together = sum(map(len, prompts))
        if len(prompts) > 1 and together > info.context:
            raise UsageError(
                f"the prompts have {together:,} tokens and more together; send {info.context:,} or fewer at once."
            )
    return prompts


def _text_prompt(
    tokenizer: Tokenizer, text: str, suffix: str | None, files: Sequence[int], layout: Layout
) -> Sequence[int]:
    if not suffix and (parts := spelled(text)) is not None:
        text, suffix = parts
    if suffix:
        return fim_prompt(tokenizer, text, suffix, files, layout)
    return [tokenizer.bos_id, *files, *tokenizer.encode(text)]


@dataclass(frozen=True)
class _Echoed:
    """A token of a prompt that is repeated, in the words of a drawn one. The first has no score."""

    token: int
    piece: str
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


class _Text:
    """One choice, as it grows."""

    stopped = False  # the engine itself looks for stop strings here
    reasoning = 0

    def __init__(self) -> None:
        self.tokens = 0
        self.pieces: list[str] = []
        self.told: list[Drawn | _Echoed] = []
        self.echoed = False
        self.length = 0
        self.finish_reason: str | None = None


class CompletionAnswer(Answer):
    """A text completion."""

    def __init__(self, backend: Backend, body: CompletionBody, jobs: Sequence[Job]) -> None:
        each = jobs[0].parameters.n
        self._texts = [_Text() for _ in range(each * len(jobs))]
        super().__init__([len(job.prompt) for job in jobs], self._texts, each=each)
        self._tokenizer = backend.info.tokenizer
        self._scores = body.logprobs
        self._jobs, self._echo = jobs, body.echo is True
        self._prompt_scores: list[list[Sampled]] = [[] for _ in jobs]
        self._include_usage = body.include_usage
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": backend.info.name,
            "service_tier": tier_of(body.service_tier),
        }
        first = body.prompt[0] if isinstance(body.prompt, list) else body.prompt
        self._begun_by_us = isinstance(first, str)

    def _drawn(self, number: int, tokens: Sequence[Drawn]) -> Iterable[str]:
        text = self._texts[number]
        text.tokens += len(tokens)
        return self._tell(number, "".join(one.piece for one in tokens), tokens)

    def _finished(self, number: int, finished: Finished) -> Iterable[str]:
        self._texts[number].finish_reason = "length" if finished.reason == "length" else "stop"
        last = finished.last  # it has a score as every token has, though it says nothing and is not counted
        ends = () if last is None else (Drawn(finished.sequence, last.token, "", last.logprob, last.alternatives),)
        return self._tell(number, finished.piece, ends, self._texts[number].finish_reason)

    def _prompt_scored(self, part: int, event: Scored) -> None:
        self._prompt_scores[part] += event.tokens

    def _echoed(self, part: int) -> list[_Echoed]:
        """The tokens of the prompt number `part`, without a BOS that is ours."""
        prompt, tokenizer = self._jobs[part].prompt, self._tokenizer
        text = TextStream(tokenizer, ())
        pieces = [text.push(token) for token in prompt]
        pieces[-1] += text.finish()
        scores = [None, *self._prompt_scores[part]] if self._prompt_scores[part] else [None] * len(prompt)
        echoed = [
            _Echoed(token, piece) if score is None else _Echoed(token, piece, score.logprob, score.alternatives)
            for token, piece, score in zip(prompt, pieces, scores, strict=True)
        ]
        return echoed[1:] if self._begun_by_us and len(echoed) > 1 else echoed

    def _tell(
        self, number: int, piece: str, tokens: Sequence[Drawn | _Echoed], finish_reason: str | None = None
    ) -> Iterable[str]:
        text = self._texts[number]
        if self._echo and not text.echoed:
            text.echoed = True
            echoed = self._echoed(number // self._each)
            yield from self._tell(number, "".join(one.piece for one in echoed), echoed)
        scores = None
        if self._scores is not None:
            scores = self._scored(tokens, text.length)
            text.told += tokens
        text.pieces.append(piece)
        text.length += len(piece)
        if piece or finish_reason or (scores and tokens):
            usage = {"usage": None} if self._include_usage else {}
            choice = {"index": number, "text": piece, "logprobs": scores, "finish_reason": finish_reason}
            yield event({**self._head, "choices": [choice], **usage})

    def _scored(self, tokens: Sequence[Drawn | _Echoed], offset: int) -> dict[str, Any]:
        """Scores as this endpoint has always had them: by the tokens' spelling."""
        spelled = [self._spelling(one.token) for one in tokens]
        offsets = []
        for one in tokens:
            offsets.append(offset)
            offset += len(one.piece)
        return {
            "tokens": spelled,
            "token_logprobs": [one.logprob for one in tokens],
            "top_logprobs": [
                None if one.logprob is None else {self._spelling(token): logprob for token, logprob in one.alternatives}
                for one in tokens
            ],
            "text_offset": offsets,
        }

    def _spelling(self, token: int) -> str:
        """A token's text; its bytes where it is a part of a character, so that no two tokens look alike."""
        spelled = self._tokenizer.bytes_of(token)
        try:
            return spelled.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)

    def end(self) -> str:
        if not self._include_usage:
            return "data: [DONE]\n\n"
        usage = usage_of(self.usage()) | self.priced()
        return event({**self._head, "choices": [], "usage": usage}) + "data: [DONE]\n\n"

    def whole(self) -> Mapping[str, Any]:
        choices = [
            {
                "index": number,
                "text": "".join(text.pieces),
                "logprobs": None if self._scores is None else self._scored(text.told, 0),
                "finish_reason": text.finish_reason,
            }
            for number, text in enumerate(self._texts)
        ]
        return {**self._head, "choices": choices, "usage": usage_of(self.usage()) | self.priced()}

    def failed(self, error: ApiError) -> str:
        return event(error_body(error, "openai", ""))
