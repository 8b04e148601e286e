"""A scripted server for the protocols' tests, and the embedded model's."""

from __future__ import annotations

from collections.abc import Iterator

import openai
import pytest
from playwright.sync_api import Browser

from narrows.engine.model import Model, load
from narrows.server.engine_backend import EngineBackend
from tests.server.browsing import House, Visit, chromium
from tests.server.scripted import KEY, Live, Scripted, live


@pytest.fixture(scope="module")
def scripted_server() -> Iterator[tuple[Scripted, Live]]:
    script = Scripted()
    with live(script) as server:
        yield script, server


@pytest.fixture
def script(scripted_server: tuple[Scripted, Live]) -> Scripted:
    """The scripted backend, as new."""
    script, _ = scripted_server
    script.replies, script.pause, script.reused, script.steps, script.fault = [], 0.0, 0, 1, None
    script.jobs.clear()
    script.cancelled.clear()
    script.started.clear()
    return script


@pytest.fixture
def server(script: Scripted, scripted_server: tuple[Scripted, Live]) -> Live:
    """The server around it, with an empty ledger."""
    _, server = scripted_server
    server.ledger.rows.clear()
    server.ledger.budget = server.ledger.refusal = None
    return server


@pytest.fixture
def client(server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def embedded() -> Model:
    return load("embedded")


@pytest.fixture(scope="module")
def embedded_server(embedded: Model) -> Iterator[Live]:
    """The embedded model, once as what it is and once as if it had been trained to chat."""
    with live(EngineBackend(embedded, "embedded", chat=False), EngineBackend(embedded, "chat", chat=True)) as server:
        yield server


@pytest.fixture
def embedded_client(embedded_server: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{embedded_server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def page_house(embedded: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    with House(tmp_path_factory.mktemp("page")).open(embedded) as house:
        yield house


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def visit(page_house: House, browser: Browser) -> Iterator[Visit]:
    """A page of that server in a window of its own, the scripted model as new."""
    script = page_house.script
    script.replies, script.pause, script.reused, script.steps, script.fault = [], 0.0, 0, 1, None
    script.jobs.clear()
    script.cancelled.clear()
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    yield Visit(page_house, context)
    context.close()
