"""A real browser at a live server, for the tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright

from narrows.economics.prices import PriceBook, Tokens
from narrows.engine.model import Model
from narrows.ledger.ledger import Ledger
from narrows.ledger.requests import Usage
from narrows.server.engine_backend import EngineBackend
from narrows.server.ledger_accounts import LedgerAccounts
from narrows.server.tariff import Tariff
from tests.server.scripted import Live, Scripted, live, wait_for

BOOK = PriceBook.load()
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
_ARGUMENTS += ["--disable-component-update", "--disable-sync"]


class House:
    """A live server of the embedded model and a scripted one, with a ledger of its own."""

    def __init__(self, folder: Path) -> None:
        self.now: datetime | None = None
        self.script = Scripted()
        self.ledger = Ledger.open(folder / "ledger.db", clock=lambda: self.now or datetime.now(UTC))
        self.accounts = LedgerAccounts(self.ledger, Tariff(BOOK, ["embedded", "scripted"]))
        self.server: Live

    @contextmanager
    def open(self, embedded: Model) -> Iterator[House]:
        backends = (EngineBackend(embedded, "embedded", chat=False), self.script)
        with self.ledger, self.accounts, live(*backends, accounts=self.accounts) as self.server:
            yield self

    def key(self, name: str = "someone", **limits: Any) -> str:
        return self.ledger.create_key(name, **limits)[1]

    def use(self, name: str, days_ago: int, tokens: Tokens) -> int:
        """Let a key have used so much some days ago -> its cost."""
        key = {key.name: key for key in self.ledger.keys()}[name]  # noqa: SIM118
        cost = BOOK.price("self-hosted", datetime.now(UTC).date()).cost(tokens)
        order: Any = {"endpoint": "/v1/completions", "protocol": "openai", "tier": "default", "worst_case": cost}
        self.now = datetime.now(UTC) - timedelta(days=days_ago)
        reservation = self.ledger.reserve(key, request_id=f"req_{key.id}_{days_ago}", model="embedded", **order)
        self.ledger.settle(reservation, Usage(tokens, cost, 0, "done", 0.1, 0.5))
        self.now = None
        return cost


@contextmanager
def chromium() -> Iterator[Browser]:
    """The machine's own; a test that asks for it is skipped where there is none."""
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip(f"the page is tested in a browser, and this machine has none of {', '.join(names)}; install one")
    expect.set_options(timeout=20_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=_ARGUMENTS)
        yield browser
        browser.close()


class Visit:
    """A page, with all that went wrong on it."""

    def __init__(self, house: House, context: BrowserContext) -> None:
        self.house, self.page = house, context.new_page()
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", lambda told: self.faults.append(told.text) if told.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))

    def open(self, secret: str | None = None, *, typing: bool = False, model: str | None = None) -> Page:
        """The page with this key, at an empty editor, where nothing is completed until somebody asks."""
        server = self.house.server
        if not typing:
            self.page.add_init_script("localStorage['narrows.typing'] ??= 'off'")
        self.page.goto(f"{server.url}/#key={secret}" if secret else server.url)
        if secret:
            expect(self.page.locator("#code-model option")).to_have_count(2)
        if model:
            wait_for(lambda: self.page.locator(".costs").count())
            self.page.select_option("#code-model", model)
        return self.page

    def check(self, *allowed: int) -> None:
        """Nothing went wrong but answers of these statuses, and nobody else was asked."""
        unknown = [one for one in self.faults if not any(f"status of {status}" in one for status in allowed)]
        assert not unknown
        assert all(url.startswith((self.house.server.url, "blob:")) for url in self.asked)


def ghost(page: Page) -> Locator:
    return page.locator("#mirror .ghost")


def write(page: Page, text: str, after: str = "") -> None:
    """Put a text into the editor, the cursor before `after`."""
    page.locator("#editor").fill(text + after)
    page.locator("#editor").evaluate("(area, at) => area.setSelectionRange(at, at)", len(text))
    page.locator("#editor").focus()
