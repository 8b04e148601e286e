"""The Usage tab in a real browser: its figures are the ledger's."""

from __future__ import annotations

import csv
import io
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import expect

from narrows.economics.money import picodollars, plain, shown
from narrows.economics.prices import Tokens
from tests.server.browsing import Visit

TODAY = datetime.now(UTC).date()


def test_usage_is_the_ledgers(visit: Visit, tmp_path: Path) -> None:
    house = visit.house
    admin = house.key("ada", scopes=["inference", "admin"], budget=10**12)
    own = house.key('=cmd, "x"', budget=4 * 10**9)
    day = min(TODAY.day - 1, 2)  # of this month
    costs = [house.use("ada", 0, Tokens(10, 20, 30)), house.use('=cmd, "x"', day, Tokens(4000, 100_000, 50_000))]
    refused = {"status": 402, "json": {"error": {"message": "nothing is to be used up here."}}}
    visit.page.route("**/v1/completions", lambda route: route.fulfill(**refused))
    page = visit.open(own)
    page.get_by_role("tab", name="Usage").click()
    expect(page.locator("#month .large")).to_have_text(f"{shown(costs[1])} of $0.004 spent")
    meter = page.get_by_role("meter")
    assert float(meter.get_attribute("aria-valuenow") or 0) == pytest.approx(costs[1] / 4e7, abs=0.01)
    expect(page.locator("#usage-all-keys")).to_be_hidden()
    rects = page.locator("#usage-plot rect")
    assert rects.count() >= 1
    expect(page.locator("#usage-plot")).not_to_contain_text("ada")
    visit.page.evaluate("key => location.hash = `key=${key}`", admin)
    expect(page.locator("#usage-keys")).to_contain_text("ada")
    expect(page.locator("#usage-plot svg")).to_have_attribute("role", "img")
    expect(page.locator("#usage-plot desc")).to_contain_text(shown(costs[1]))
    page.get_by_text("The same figures as a table").click()
    line = page.locator("#usage-days tr", has_text="=cmd").locator("td")
    wanted = [(TODAY - timedelta(days=day)).isoformat(), '=cmd, "x"', "1", "4,000", "100,000", "50,000", "0"]
    assert [text.strip() for text in line.all_inner_texts()] == [*wanted, shown(costs[1])]
    total = page.locator("#usage-models tfoot td").last.inner_text().strip()
    assert total == shown(sum(row.cost for row in house.ledger.usage(("model",))))
    with page.expect_download() as download:
        page.get_by_role("button", name="Download CSV").click()
    download.value.save_as(tmp_path / "usage.csv")
    rows = list(csv.DictReader(io.StringIO((tmp_path / "usage.csv").read_text())))
    told = {(row["key_name"], row["day"], row["cost_dollars"]) for row in rows}
    assert ('=cmd, "x"', wanted[0], plain(costs[1])) in told
    assert sum(picodollars(row["cost_dollars"]) for row in rows) == picodollars(total[1:])
    page.get_by_label("From", exact=True).fill("2026-01-05")
    page.get_by_label("To", exact=True).fill("2026-01-07")
    expect(page.locator("#usage-plot")).to_have_text("Nothing was used in these days.")
    expect(page.locator("#usage-plot svg")).to_have_count(0)
    expect(page.get_by_role("button", name="Download CSV")).to_be_disabled()
    page.get_by_label("To", exact=True).fill("2026-01-04")
    expect(page.locator("#usage-span")).to_contain_text("The first day is behind the last")
    expect(page.get_by_label("From", exact=True)).to_have_value("2026-01-05")
    expect(page.locator("#usage-plot")).to_be_empty()
    expect(page.locator("#usage-by-model")).to_be_hidden()
    expect(page.locator("#usage-requests tbody td").first).to_have_text(re.compile(r"[\d-]{10} \d\d:\d\d:\d\d"))
    assert page.locator("#usage-requests .scroll").evaluate("is => is.scrollHeight <= is.clientHeight")
    visit.check(402)
