"""Workload: a month's requests, read from a TOML file.

```toml
[[requests]]
name = "agents"
count = 5000             # so many of them
per = "day"              # hour, day or month
prompt = "32K"           # tokens that each reads
cached = "80%"           # of these, known already
output = 600             # tokens of the answer
reasoning = { none = 0, high = 1500, max = 9000 }   # and of what is thought before it, by effort
effort = "high"
```
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from narrows.economics.prices import Tokens
from narrows.economics.toml_file import read_toml, tables_of
from narrows.economics.units import HOURS_A_MONTH, several, share, tokens
from narrows.errors import NarrowsError, UsageError

EFFORTS = ("none", "high", "max")

_PER = {"hour": HOURS_A_MONTH, "day": HOURS_A_MONTH / 24, "month": 1.0}

_FIELDS = ("name", "count", "per", "prompt", "cached", "output", "reasoning", "effort")


@dataclass(frozen=True)
class Requests:
    """Requests of one kind: `count` a month, each of so many tokens; `cached` is the share of the prompt that is known.

    `reasoning`: tokens that are thought before an answer, by effort, which are paid as what is written; None for
    requests that are answered without.
    """

    name: str
    count: int
    prompt: int
    output: int
    cached: Fraction = Fraction(0)
    reasoning: Mapping[str, int] | None = None
    effort: str = "none"

    @property
    def written(self) -> int:
        """Tokens that a request writes, thinking included."""
        return self.output + (self.reasoning or {}).get(self.effort, 0)

    @property
    def hit(self) -> int:
        """Tokens of its prompt that are known."""
        return int(self.prompt * self.cached)

    @property
    def each(self) -> Tokens:
        """One request's tokens, by what they cost."""
        return Tokens(hit=self.hit, miss=self.prompt - self.hit, output=self.written)

    @property
    def tokens(self) -> Tokens:
        """A month's."""
        one = self.each
        return Tokens(one.hit * self.count, one.miss * self.count, one.output * self.count)

    def at(self, effort: str) -> Requests:
        """The same with another effort. UsageError where it is not known how much is thought then."""
        if not isinstance(effort, str) or effort not in EFFORTS:
            raise UsageError(f"effort is {effort!r}; give one of {', '.join(EFFORTS)}.")
        if self.reasoning is not None and effort not in self.reasoning:
            raise UsageError(
                f"how much is thought at the effort {effort} is not known; give reasoning = {{ {effort} = TOKENS }}."
            )
        return replace(self, effort=effort)

    def reading(self, cached: Fraction) -> Requests:
        """The same with another share of known tokens."""
        return replace(self, cached=cached)


def load(path: Path) -> list[Requests]:
    """A file's. NarrowsError, naming file, kind and field, for one that cannot be read or understood."""
    raw = read_toml(path, "a workload")
    tables = tables_of(raw, "requests")
    if not tables:
        raise NarrowsError(f"{path} is no workload; let it hold tables [[requests]], and nothing else.")
    found = []
    for number, table in enumerate(tables, start=1):
        name = table.get("name", f"requests {number}")
        try:
            if not isinstance(name, str) or not name.strip():
                raise UsageError(f"name is {name!r}; give text.")
            found.append(_requests(name, table))
        except UsageError as error:
            raise NarrowsError(f"{path}: {name}: {error}") from None
    return found


def _requests(name: str, table: Mapping[str, Any]) -> Requests:
    for field in table:
        if field not in _FIELDS:
            raise UsageError(f"the field {field} is not known here; remove it.")
    for field in ("count", "prompt", "output"):
        if field not in table:
            raise UsageError(f"the field {field} is missing; add it.")
    per = table.get("per", "month")
    if not isinstance(per, str) or per not in _PER:
        raise UsageError(f"per is {per!r}; give one of {', '.join(_PER)}.")
    made = Requests(
        name=name,
        count=round(several(table["count"], "count") * _PER[per]),
        prompt=tokens(table["prompt"], "prompt", least=0),
        output=tokens(table["output"], "output", least=0),
        cached=share(table.get("cached", 0), "cached"),
        reasoning=_reasoning(table.get("reasoning")),
    ).at(table.get("effort", "none"))
    if not made.prompt + made.written:
        raise UsageError("its requests read and write nothing; give prompt or output above 0.")
    return made


def _reasoning(value: Any) -> dict[str, int] | None:
    if value is None:
        return None
    if not isinstance(value, dict) or not value.keys() <= set(EFFORTS):
        raise UsageError(f"reasoning is {value!r}; give tokens by effort, such as {{ high = 1500, max = 9000 }}.")
    return {"none": 0} | {effort: tokens(number, f"reasoning.{effort}", least=0) for effort, number in value.items()}


def total(requests: Sequence[Requests]) -> Tokens:
    """A month's tokens of all kinds."""
    months = [one.tokens for one in requests]
    return Tokens(*(sum(getattr(month, kind) for month in months) for kind in ("hit", "miss", "output")))
