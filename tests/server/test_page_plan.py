"""The Plan tab in a real browser: its figures are the overview's, and its amounts the price book's."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from fractions import Fraction
from itertools import pairwise
from math import log10
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from narrows.economics.money import picodollars, shown
from narrows.economics.overview import overview
from narrows.economics.prices import OTHERWISE, Tokens
from tests.server.browsing import BOOK, House, Visit
from tests.server.scripted import wait_for
from tests.server.test_page import AUDIT

TODAY = datetime.now(UTC).date()
OFFERS = [name for name in BOOK.names if name != OTHERWISE]
MODELS = ("deepseek-v3.2", "deepseek-v4-pro", "deepseek-v4-flash")


def start(visit: Visit) -> Page:
    page = visit.open(visit.house.key())
    page.get_by_role("tab", name="Plan").click()
    expect(page.locator("#plan-costs tbody tr")).to_have_count(len(OFFERS))
    return page


def lines(place: Locator) -> list[list[str]]:
    """The cells of a table's lines, as they are read."""
    return [[text.strip() for text in row.locator("td").all_inner_texts()] for row in place.locator("tbody tr").all()]


def move(page: Page, slider: str, step: int, words: str) -> None:
    place = page.get_by_role("slider", name=slider)
    place.fill(str(step))
    expect(place).to_have_attribute("aria-valuetext", words)


def check_token(page: Page, context: int, name: str) -> None:
    """Figures, tables and curves at this context."""
    expect(page.locator("#plan-token-words")).to_contain_text(f"At {name} tokens ")
    told = overview(BOOK, TODAY, context=context, cached=Fraction(0), tokens=1, written=Fraction(0))["efficiency"]
    for place, field, column in (("plan-work", "flops", 1), ("plan-history", "history_bytes", 2)):
        most = told[MODELS[0]][field]
        for line, model in zip(lines(page.locator(f"#{place}-figures")), MODELS, strict=True):
            value = told[model][field]
            assert line[0] == model
            assert float(line[1].replace(",", "")) == pytest.approx(value / 1e9, rel=0.005)
            assert line[2] == f"{value / most:.1%}"
        page.locator(f"#{place}-curves").evaluate("is => is.parentElement.open = true")
        for i, line in enumerate(lines(page.locator(f"#{place}-curves"))):
            assert line[0] == f"{told[MODELS[0]]['curve'][i][0]:,}"
            values = [told[model]["curve"][i][column] / 1e9 for model in MODELS]
            assert [float(text.replace(",", "")) for text in line[1:]] == pytest.approx(values, rel=0.005)
        svg = page.locator(f"#{place} svg")
        expect(svg).to_have_attribute("role", "img")
        ticks = heights(svg)
        (low, bottom), (high, top) = min(ticks.items()), max(ticks.items())
        assert low == 0
        for i, model in enumerate(MODELS):
            wanted = [bottom - (bottom - top) * point[column] / 1e9 / high for point in told[model]["curve"]]
            drawn = [y for _, y in points(svg.locator("polyline").nth(i))]
            assert drawn[0] == pytest.approx(wanted[0], abs=0.1)
            assert drawn[-1] == pytest.approx(wanted[-1], abs=0.1)
            assert len(drawn) >= len(wanted)
            assert float(svg.locator("circle").nth(i).get_attribute("cy") or 0) == pytest.approx(wanted[-1], abs=0.1)
            assert f"{model}: from" in svg.locator("desc").inner_html()


def heights(svg: Locator) -> dict[float, float]:
    """Where the ticks of the upright axis stand, by what they say."""
    found = {}
    for tick in svg.locator("text[text-anchor=end]").all():
        text = (tick.text_content() or "").replace(",", "").replace("$", "")
        number = float(text.removesuffix("M")) * (1e6 if text.endswith("M") else 1)
        found[number] = float(tick.get_attribute("y") or 0) - 4
    return found


def points(line: Locator) -> list[tuple[float, float]]:
    pairs = (pair.split(",") for pair in (line.get_attribute("points") or "").split())
    return [(float(x), float(y)) for x, y in pairs]


def crossing(line: list[tuple[float, float]], x: float) -> float:
    """How high a line stands at x."""
    (x0, y0), (x1, y1) = next(pair for pair in pairwise(line) if pair[1][0] >= x - 0.1)
    return y0 + (y1 - y0) * (x - x0) / (x1 - x0)


def check_month(page: Page, tokens: int, written: str, cached: str) -> None:
    """Costs and their curves, to the last digit."""
    parts = {"cached": Fraction(cached), "written": Fraction(written)}
    month = overview(BOOK, TODAY, context=1, tokens=tokens, **parts)["month"]
    kinds = month["tokens"]
    words = f"{kinds['hit']:,} tokens cached, {kinds['miss']:,} read and {kinds['output']:,} written, at"
    expect(page.locator("#plan-month-words")).to_have_text(f"{words} the prices of today.")
    costs = sorted(month["costs"], key=lambda cost: -picodollars(cost["total"]))
    rows = lines(page.locator("#plan-costs"))
    svg = page.locator("#plan-cost svg")
    ticks = heights(svg)
    (low, bottom), (high, top) = min(ticks.items()), max(ticks.items())
    for i, (row, cost) in enumerate(zip(rows, costs, strict=True)):
        exact = BOOK.price(cost["model"], TODAY).cost(Tokens(**kinds))
        amounts = [shown(picodollars(cost[kind])) for kind in ("hit", "miss", "output")]
        assert [*row[:2], *row[3:]] == [cost["model"], shown(exact), *amounts, cost["since"]]
        assert float(row[2].removesuffix("×").replace(",", "")) == pytest.approx(
            float(Fraction(picodollars(costs[0]["total"]), exact)), rel=0.005
        )
        dot = float(svg.locator("circle").nth(i).get_attribute("cy") or 0)
        share = log10(exact / 1e12 / low) / log10(high / low)
        assert dot == pytest.approx(bottom - (bottom - top) * share, abs=0.1)
        ends = [month["by_cached"]["costs"][cost["model"]][end] for end in (0, -1)]
        drawn = points(svg.locator("polyline").nth(i))
        shares = [log10(picodollars(end) / 1e12 / low) / log10(high / low) for end in ends]
        assert [drawn[0][1], drawn[-1][1]] == pytest.approx([bottom - (bottom - top) * one for one in shares], abs=0.1)
        assert crossing(drawn, float(svg.locator("circle").nth(i).get_attribute("cx") or 0)) == pytest.approx(
            dot, abs=1
        )
        assert f"{shown(exact)} at the chosen share" in svg.locator("desc").inner_html()
    page.locator("#plan-cost-curves").evaluate("is => is.parentElement.open = true")
    for i, line in enumerate(lines(page.locator("#plan-cost-curves"))):
        wanted = [shown(picodollars(month["by_cached"]["costs"][cost["model"]][i])) for cost in costs]
        assert line == [f"{5 * i}%", *wanted]


def test_a_token_at_the_longest_context_is_the_reports(visit: Visit) -> None:
    page = start(visit)
    assert lines(page.locator("#plan-work-figures"))[1] == ["deepseek-v4-pro", "319.4", "26.7%"]
    assert lines(page.locator("#plan-history-figures"))[1] == ["deepseek-v4-pro", "5.28", "10.5%"]
    expect(page.locator("#plan-token-words")).to_have_text(
        "At 1M tokens deepseek-v4-pro takes 26.7% of deepseek-v3.2's operations and 10.5% of its memory; "
        "deepseek-v4-flash takes 10.1% and 7.3%."
    )
    check_token(page, 1 << 20, "1M")
    visit.check()


def test_sliders_change_figures_and_curves(visit: Visit) -> None:
    page = start(visit)
    check_month(page, 100_000_000, "0.1", "0.5")
    for step, context, name in ((10, 128 * 1024, "128K"), (0, 4096, "4K"), (15, 768 * 1024, "768K")):
        move(page, "Context", step, f"{name} tokens")
        check_token(page, context, name)
    move(page, "Tokens a month", 8, "500 million tokens")
    move(page, "Cached share", 98, "98%")
    expect(page.locator("#plan-cached-words")).to_have_text("98%")
    check_month(page, 500_000_000, "0.1", "0.98")
    move(page, "Tokens a month", 18, "1 trillion tokens")
    move(page, "Written share", 29, "29%")
    check_month(page, 10**12, "0.29", "0.98")
    move(page, "Tokens a month", 0, "1 million tokens")
    move(page, "Written share", 0, "0%")
    check_month(page, 1_000_000, "0", "0.98")
    move(page, "Cached share", 100, "100%")
    check_month(page, 1_000_000, "0", "1")
    x = [x for x, _ in points(page.locator("#plan-cost polyline").first)]
    assert float(page.locator("#plan-cost circle").first.get_attribute("cx") or 0) == pytest.approx(x[-1], abs=0.1)
    visit.check()


def test_sliders_are_moved_by_keys_and_remembered(visit: Visit) -> None:
    page = start(visit)
    slider = page.get_by_role("slider", name="Context")
    slider.focus()
    for key, words in (("ArrowLeft", "768K"), ("Home", "4K"), ("ArrowUp", "6K"), ("ArrowRight", "8K")):
        page.keyboard.press(key)
        expect(slider).to_have_attribute("aria-valuetext", f"{words} tokens")
        expect(page.locator("#plan-context-words")).to_have_text(f"{words} tokens")
    check_token(page, 8192, "8K")
    expect(slider).to_be_focused()
    for name in ("Tokens a month", "Written share of them", "Cached share of the others"):
        page.keyboard.press("Tab")
        while not page.evaluate("document.activeElement.matches('input[type=range]')"):
            page.keyboard.press("Tab")
        expect(page.get_by_role("slider", name=name)).to_be_focused()
        page.keyboard.press("End")
    expect(page.locator("#plan-month-words")).to_contain_text("0 tokens cached, 0 read and 1,000,000,000,000 written")
    page.reload()
    page.get_by_role("tab", name="Plan").click()
    expect(page.get_by_role("slider", name="Context")).to_have_attribute("aria-valuetext", "8K tokens")
    check_token(page, 8192, "8K")
    visit.check()


def test_an_older_answer_never_comes_after_a_newer_one(visit: Visit) -> None:
    held: list[Route] = []

    def hold(route: Route) -> None:
        if "context=4096&" in route.request.url:
            held.append(route)
        else:
            route.continue_()

    page = start(visit)
    page.route("**/api/plan?*", hold)
    move(page, "Context", 0, "4K tokens")
    wait_for(lambda: page.evaluate("1") and held)  # which lets the routes be asked
    move(page, "Context", 10, "128K tokens")
    check_token(page, 128 * 1024, "128K")
    held[0].continue_()
    page.wait_for_timeout(300)
    check_token(page, 128 * 1024, "128K")
    visit.check()


def test_a_slider_that_is_dragged_asks_when_it_rests(visit: Visit) -> None:
    page = start(visit)
    asked = len(visit.asked)
    page.get_by_role("slider", name="Cached share").evaluate(
        """async (slider) => {
          for (let step = 0; step <= 87; step += 1) {
            slider.value = step;
            slider.dispatchEvent(new Event("input"));
            if (step % 8 === 0) await new Promise(requestAnimationFrame);
          }
        }"""
    )
    check_month(page, 100_000_000, "0.1", "0.87")
    plans = [url for url in visit.asked[asked:] if "/api/plan" in url]
    assert len(plans) <= 4  # and not 88
    assert "cached=0.87&" in f"{plans[-1]}&"
    visit.check()


def test_the_servers_own_price_is_nobodys_offer(visit: Visit) -> None:
    page = start(visit)
    expect(page.locator("#plan-costs tbody tr")).to_have_count(len(OFFERS))
    expect(page.locator("#plan")).not_to_contain_text("self-hosted")
    visit.check()


def test_what_goes_wrong_is_a_sentence_and_nothing_old_stands_under_new_sliders(visit: Visit) -> None:
    page = start(visit)
    fault = {"status": 503, "json": {"error": {"message": "the ledger rests; try again."}}}
    page.route("**/api/plan?*", lambda route: route.fulfill(**fault))
    move(page, "Context", 10, "128K tokens")
    expect(page.locator("#plan").get_by_role("alert")).to_have_text("The ledger rests; try again.")
    expect(page.locator("#plan-work")).to_be_hidden()
    expect(page.locator("#plan-costs")).to_be_hidden()
    page.unroute("**/api/plan?*")
    move(page, "Context", 4, "16K tokens")
    expect(page.locator("#plan-notice")).to_be_hidden()
    expect(page.locator("#plan-work")).to_be_visible()
    check_token(page, 16 * 1024, "16K")
    visit.check(503)


def test_without_a_key_it_asks_for_one(visit: Visit) -> None:
    page = visit.open()
    page.get_by_role("tab", name="Plan").click()
    expect(page.locator("#plan-keyless")).to_contain_text("told to whoever has a key; enter yours first.")
    expect(page.locator("#plan-cards")).to_be_hidden()
    assert not any("/api/plan" in url for url in visit.asked)
    page.get_by_label("Key", exact=True).fill(visit.house.key())
    page.keyboard.press("Enter")
    expect(page.locator("#plan-keyless")).to_be_hidden()
    check_token(page, 1 << 20, "1M")
    page.locator("#key-button").click()
    page.get_by_role("button", name="Forget it").click()
    expect(page.locator("#plan-cards")).to_be_hidden()
    visit.check(401)


@pytest.mark.parametrize(("theme", "width"), [("light", 1280), ("dark", 1280), ("light", 360), ("dark", 360)])
def test_everybody_can_read_it(browser: Browser, page_house: House, theme: Any, width: int) -> None:
    context = browser.new_context(color_scheme=theme, reduced_motion="reduce", viewport={"width": width, "height": 740})
    visit = Visit(page_house, context)
    page = visit.open()
    page.get_by_role("tab", name="Plan").click()
    assert page.evaluate(AUDIT) == []
    page = visit.open(page_house.key())
    page.reload()
    page.get_by_role("tab", name="Plan").click()
    expect(page.locator("#plan-costs tbody tr")).to_have_count(len(OFFERS))
    move(page, "Tokens a month", 18, "1 trillion tokens")
    expect(page.locator("#plan-month-words")).to_contain_text("100,000,000,000 written")
    for details in page.locator("#plan details").all():
        details.evaluate("is => is.open = true")
    assert page.evaluate(AUDIT) == []
    for chart in page.locator("#plan svg").all():
        outside = """svg => [...svg.querySelectorAll("text, circle")].filter((is) => {
          const [inner, outer] = [is.getBoundingClientRect(), svg.getBoundingClientRect()];
          return inner.left < outer.left || inner.right > outer.right || inner.bottom > outer.bottom;
        }).map((is) => is.textContent)"""
        assert chart.evaluate(outside) == []
        # Ticks beside one another leave a space.
        ends = chart.locator("text[text-anchor=middle]").evaluate_all(
            "all => all.slice(0, -1).map((is) => is.getBoundingClientRect()).map(({ left, right }) => [left, right])"
        )
        assert all(right + 2 < left for (_, right), (left, _) in pairwise(ends))
    assert re.fullmatch(r"\$[\d,]+\.00", lines(page.locator("#plan-costs"))[0][1])
    page.set_viewport_size({"width": 700, "height": 740})
    wait_for(lambda: page.locator("#plan-cost").evaluate("is => is.firstChild.clientWidth === is.clientWidth"))
    assert page.evaluate(AUDIT) == []
    visit.check()
    context.close()
