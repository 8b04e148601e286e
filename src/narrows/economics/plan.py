"""A month's plan: what it costs with every model, and where hosting one breaks even."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from fractions import Fraction
from typing import Any

from narrows.economics.bill import Bill, bill, requests_for
from narrows.economics.chips import Chip
from narrows.economics.explain import of_chips, of_served
from narrows.economics.money import PICODOLLARS, plain, shown
from narrows.economics.prices import Entry, PriceBook, Tokens
from narrows.economics.serving import BreakEven, Demand, Served, best_layout, break_even, deployments
from narrows.economics.units import HOURS_A_MONTH
from narrows.economics.work import AnyConfig, check_served
from narrows.economics.workload import EFFORTS, Requests
from narrows.economics.workload import total as total_of
from narrows.errors import UsageError
from narrows.model.precision import Precision


@dataclass(frozen=True)
class MonthlyPlan:
    """A month's requests and their bills. `bills` begin with the model compared with, if there is one; `demands` are
    the requests as a deployment meets them; `by_effort` the same bills at every effort that all requests know."""

    requests: Fraction
    tokens: tuple[float, float, float]
    bills: tuple[Bill, ...]
    reference: Bill | None
    demands: tuple[Demand, ...]
    models: tuple[str, ...]
    by_effort: Mapping[str, tuple[Bill, ...]] = field(default_factory=dict)

    def explain(self) -> Iterator[tuple[str, str]]:
        """Every bill, as a sum of products."""
        for one in self.bills:
            price = one.entry.price
            prices = (price.hit, price.miss, price.output)
            parts = zip(("known", "read", "written"), prices, self._of(one), strict=True)
            products = [f"{count:,.0f} {kind} × {shown(each)}" for kind, each, count in parts if count]
            yield f"{one.entry.model}, {one.entry.since}", f"{' + '.join(products)} ({one.entry.source})"

    def _of(self, one: Bill) -> tuple[float, float, float]:
        """Tokens of a bill, which may be more than the reference's where a model thinks."""
        price = one.entry.price
        parts = ((one.hit, price.hit), (one.miss, price.miss), (one.output, price.output))
        hit, miss, output = (float(amount / each) if each else 0.0 for amount, each in parts)
        return hit, miss, output

    def told(self) -> dict[str, Any]:
        """As JSON: dollars as text, to the picodollar."""
        return {
            "requests": float(self.requests),
            "tokens": dict(zip(("hit", "miss", "output"), self.tokens, strict=True)),
            "bills": [_told(one, self.reference) for one in self.bills],
            "by_effort": {effort: [_told(one, None) for one in bills] for effort, bills in self.by_effort.items()},
        }


def of_workload(
    requests: Sequence[Requests], book: PriceBook, on: date, names: Sequence[str], source: str | None
) -> MonthlyPlan:
    """Of requests that are known, the same for every model."""
    month = total_of(requests)
    entries = _entries(book, names, source, on)
    bills = tuple(bill(month, entry) for entry in entries)
    efforts = [effort for effort in EFFORTS if all(_knows(one, effort) for one in requests)]
    thinking = any(one.reasoning is not None for one in requests)
    count = sum(one.count for one in requests)
    return MonthlyPlan(
        requests=Fraction(count),
        tokens=(month.hit, month.miss, month.output),
        bills=bills,
        reference=bills[0] if source is not None else None,
        demands=tuple(Demand(one.prompt, one.hit, one.written, one.count / count) for one in requests),
        models=tuple(dict.fromkeys(entry.model for entry in entries)),
        by_effort={
            effort: tuple(bill(total_of([one.at(effort) for one in requests]), entry) for entry in entries)
            for effort in (efforts if thinking else [])
        },
    )


def of_bill(
    amount: int, each: Requests, reasoning: int, book: PriceBook, on: date, names: Sequence[str], source: str
) -> MonthlyPlan:
    """Of a bill of so many picodollars that requests of one kind have cost with `source` on that day. The others think
    so many tokens more in each. UsageError for requests of nothing."""
    if not each.prompt + each.output:
        raise UsageError("such requests read and write nothing; give --prompt or --output above 0.")
    paid = book.entry(book.resolve(source), on)
    count = requests_for(amount, each.each, paid)
    one = each.each
    thought = Tokens(one.hit, one.miss, one.output + reasoning)
    entries = _entries(book, names, source, on)
    bills = tuple(bill(one if entry is entries[0] else thought, entry, count) for entry in entries)
    return MonthlyPlan(
        requests=count,
        tokens=(float(count * one.hit), float(count * one.miss), float(count * one.output)),
        bills=bills,
        reference=bills[0],
        demands=(Demand(each.prompt, each.hit, thought.output),),
        models=tuple(dict.fromkeys(entry.model for entry in entries)),
    )


@dataclass(frozen=True)
class Hosted:
    """A model on so many chips, in the layout that serves the month's requests best, or what is in its way; and beside
    prices of APIs the requests from which on the chips are cheaper."""

    model: str
    count: int
    chip: Chip
    served: Served | None
    missed: str
    even: tuple[tuple[Entry, BreakEven | None], ...] = ()

    def explain(self) -> Iterator[tuple[str, str]]:
        """What it costs, what a request takes, and where it breaks even."""
        assert self.served is not None
        served, where = self.served, f"{self.model} on {self.count}x{self.chip.name}"
        lines = [*of_chips(self.chip, self.count), *of_served(served)]
        for entry, even in self.even:
            if even is not None:
                name = f"as much as {entry.model}, {entry.since}"
                terms = f"${even.monthly:,.2f} a month ÷ ${even.monthly / even.at:.6g} a request"
                lines.append((name, f"{even.at:,.0f} requests a month = {terms}"))
        for name, terms in lines:
            yield f"{where}: {name}", terms

    def told(self) -> dict[str, Any]:
        """As JSON."""
        told: dict[str, Any] = {"model": self.model, "chips": self.count, "chip": self.chip.name}
        served = self.served
        if served is None:
            return told | {"missed": self.missed}
        even = [
            {
                "instead_of": entry.model,
                "price_since": entry.since.isoformat(),
                "requests_a_month": found.at if found else None,
                "reachable": found.reachable if found else None,
            }
            for entry, found in self.even
        ]
        return told | served.told() | {"break_even": even}


def hosting(
    made: MonthlyPlan,
    models: Sequence[tuple[str, AnyConfig]],
    sets: Sequence[tuple[int, Chip]],
    *,
    speed: float,
    precision: Precision = Precision.OFFICIAL,
    reached: float = 1.0,
    hours: float = HOURS_A_MONTH,
) -> list[Hosted]:
    """Every model on every set of chips, for requests that come in so many hours of a month. Each is compared with what
    is paid now, and with the model's own price of today. UsageError for a context beyond a model's positions."""
    found = []
    for name, config in models:
        for demand in made.demands:
            try:
                check_served(config, demand.context)
            except UsageError as error:
                raise UsageError(f"{name} cannot answer prompts of {demand.prompt:,} tokens: {error}") from None
        for count, chip in sets:
            try:
                possible = deployments(config, chip, count, precision=precision, reached=reached)
            except UsageError as error:
                found.append(Hosted(name, count, chip, None, str(error)))
                continue
            served = best_layout(possible, made.demands, speed)
            if served is None:
                longest = max(demand.context for demand in made.demands)
                fit = max(deployment.capacity(longest) for deployment in possible)
                missed = (
                    f"nobody there would get {speed:g} tokens/s" if fit else "its weights and one request do not fit"
                )
                found.append(Hosted(name, count, chip, None, missed))
                continue
            served = replace(served, hours=hours)
            own = [one for one in made.bills if one.entry.model == name][-1:]
            paid = [made.reference] if made.reference is not None and made.reference not in own else []
            even = tuple(
                (one.entry, break_even(served, float(one.total / made.requests / PICODOLLARS))) for one in paid + own
            )
            found.append(Hosted(name, count, chip, served, "", even))
    return found


def _entries(book: PriceBook, names: Sequence[str], source: str | None, on: date) -> list[Entry]:
    """What is compared: what `source` costs on that day, and every price that the others have had until then."""
    found: list[Entry] = []
    if source is not None:
        found.append(book.entry(book.resolve(source), on))
    for name in names:
        if source is None or name != found[0].model:
            known = [entry for entry in book.history(name) if entry.since <= on]
            found += known or [book.entry(name, on)]  # which says from when on it has one
    return found


def _knows(one: Requests, effort: str) -> bool:
    return one.reasoning is None or effort in one.reasoning


def _told(one: Bill, reference: Bill | None) -> dict[str, Any]:
    parts = {"hit": one.hit, "miss": one.miss, "output": one.output, "total": one.total}
    told: dict[str, Any] = {"model": one.entry.model, "price_since": one.entry.since.isoformat()}
    told |= {name: plain(round(amount)) for name, amount in parts.items()}
    if reference is not None and one.total:
        told["times_less"] = float(reference.total / one.total)
    return told
