"""`narrows serve` as its host meets it: a process on a port, real SDKs, a real ledger, the embedded model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from narrows.cli.main import main
from narrows.ledger.ledger import Ledger

SERVE = [sys.executable, "-m", "narrows.cli.main", "serve", "--port", "0"]


class Served:
    """A server of its own process."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        environment = os.environ | {"NARROWS_DATA": str(folder / "data"), "NARROWS_CACHE": str(folder / "cache")}
        self.process = subprocess.Popen(
            [*SERVE, *options], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        lines = []
        for line in self.process.stdout:
            lines.append(line)
            if line.startswith("Ctrl-C"):
                break
        self.greeting = "".join(lines)
        self.log: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        found = re.search(r"https?://[^\s/]+", self.greeting)
        assert found, self.greeting
        self.url = found[0]

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)

    def close(self) -> None:
        """Kill it if it still runs, and close its pipes."""
        self.process.kill()
        self._reader.join()
        with self.process:  # waits, and closes
            pass


@contextmanager
def served(folder: Path, *options: str) -> Iterator[Served]:
    server = Served(folder, *options)
    try:
        yield server
    finally:
        server.close()


def get(url: str, secret: str, body: Any = None, tls: ssl.SSLContext | None = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON, or text."""
    data = None if body is None else json.dumps(body).encode()
    told = {"x-api-key": secret, "content-type": "application/json", **headers}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data, told), timeout=60, context=tls) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    return status, json.loads(text) if text.startswith("{") else text


Refused = Callable[..., str]


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """What is said of options that cannot be."""
    monkeypatch.setenv("NARROWS_DATA", str(tmp_path / "data"))

    def run(*options: str) -> str:
        monkeypatch.setattr(sys, "argv", ["narrows", "serve", "--port", "0", *options])
        with pytest.raises(SystemExit) as end:
            main()
        shown = capsys.readouterr()
        assert end.value.code in (1, 2)
        assert re.fullmatch(r"narrows: .*\n", shown.err), shown.err
        assert shown.out == ""
        return shown.err

    return run


def test_the_first_start_makes_a_key_and_shows_how_to_use_it(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        (secret,) = set(re.findall(r"nrw_[0-9A-Za-z]{43}", server.greeting))
        assert f"{server.url}/#key={secret}" in server.greeting
        # What it says to try, as it stands there.
        command = server.greeting[server.greeting.index("  curl") : server.greeting.index("Ctrl-C")]
        if shutil.which("curl"):
            streamed = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60).stdout
            assert streamed.count("data: {") > 2
            assert streamed.rstrip().endswith("data: [DONE]")
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
            (model,) = client.models.list().data
            assert model.id == "embedded"
            text = client.completions.create(model="embedded", prompt="def add(a, b):\n    return", max_tokens=8)
            assert text.usage is not None
        usage = get(f"{server.url}/api/usage", secret)[1]
        assert usage["total"]["output"] >= text.usage.completion_tokens
        assert get(f"{server.url}/metrics", secret)[0] == 200
        assert server.end() == 0
    assert all(line["level"] == "info" for line in server.log)
    assert "def add" not in json.dumps(server.log)
    assert secret not in json.dumps(server.log)
    with served(tmp_path) as server:
        assert "nrw_" not in server.greeting
        assert "keys create NAME" in server.greeting
        assert get(f"{server.url}/v1/models", secret)[0] == 200
        assert server.end(signal.SIGINT) == 0


def test_a_server_that_ends_lets_its_requests_end(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        secret = re.findall(r"nrw_\w+", server.greeting)[0]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as other:
            stream = other.completions.create(
                model="embedded", prompt="import os\n", max_tokens=400, stream=True, logit_bias={"1": -100},
                stream_options={"include_usage": True},
            )  # fmt: skip
            next(stream)
            server.process.terminate()
            while not any(line["message"].startswith("ending") for line in server.log):
                time.sleep(0.01)
            with pytest.raises((openai.InternalServerError, openai.APIConnectionError)):
                other.completions.create(model="embedded", prompt="import sys\n", max_tokens=1)
            *_, last = stream
        assert last.usage.completion_tokens == 400
        assert server.process.wait(60) == 0
    with Ledger.open(tmp_path / "data" / "ledger.db") as ledger:
        (row,) = ledger.requests()
        assert (row.output, row.outcome) == (400, "done")


def test_a_second_signal_cuts_off_and_charges_what_was_sent(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        secret = re.findall(r"nrw_\w+", server.greeting)[0]
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=secret, max_retries=0) as client:
            stream = client.completions.create(
                model="embedded", prompt="import os\n", max_tokens=100_000, stream=True, logit_bias={"1": -100}
            )
            for _ in range(10):
                next(stream)
            server.process.terminate()
            time.sleep(0.2)
            server.process.terminate()
            with pytest.raises(openai.APIError, match="the server ended before this answer did"):
                list(stream)
        assert server.process.wait(60) == 0
    with Ledger.open(tmp_path / "data" / "ledger.db") as ledger:
        (row,) = ledger.requests()
        assert row.outcome == "cut"
        assert row.output >= 9
        assert row.cost > 0


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes a certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "certificate.pem", folder / "key.pem"
    options = ["-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-keyout", key, "-out", made, *options]
    subprocess.run(command, check=True, capture_output=True)
    return made, key


def test_https_and_other_names(tmp_path: Path, certificate: tuple[Path, Path]) -> None:
    made, key = certificate
    tls = ("--certificate", str(made), "--private-key", str(key))
    with served(tmp_path, *tls, "--allow-host", "models.example") as server:
        secret = re.findall(r"nrw_\w+", server.greeting)[0]
        url = server.url.replace("127.0.0.1", "localhost")
        assert url.startswith("https://")
        trusted = ssl.create_default_context(cafile=str(made))
        for host, status in (("localhost", 200), ("models.example", 200), ("elsewhere.example", 421)):
            assert get(f"{url}/v1/models", secret, tls=trusted, host=host)[0] == status


def test_it_is_not_open_to_others_by_accident(tmp_path: Path, certificate: tuple[Path, Path], refused: Refused) -> None:
    made, key = map(str, certificate)
    others = ("--host", "0.0.0.0", "--allow-host", "here.example")
    assert "unencrypted; give --certificate" in refused(*others)
    assert "--allow-host NAME" in refused("--host", "0.0.0.0", "--plain-http")
    for secured in (("--plain-http",), ("--certificate", made, "--private-key", key)):
        assert "make one first: narrows keys create NAME" in refused(*others, *secured)
    with Ledger.open(tmp_path / "data" / "ledger.db") as ledger:
        assert ledger.keys() == []
        ledger.create_key("other")
    with served(tmp_path, *others, "--plain-http") as server:
        assert "://here.example:" in server.greeting
        assert "nrw_" not in server.greeting


def test_options_that_cannot_be(tmp_path: Path, certificate: tuple[Path, Path], refused: Refused) -> None:
    made, key = map(str, certificate)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port} of 127.0.0.1 is taken; choose another" in refused("--port", port)
    prices = tmp_path / "prices.toml"
    prices.write_text("[[prices]]\nmodel = 3\n")
    for options, said in (
        (("--certificate", made), "--certificate and --private-key go together"),
        (("--certificate", key, "--private-key", made), "are no certificate and its key"),
        (("--certificate", "/no/such", "--private-key", made), "No such file"),
        (("--host", "nowhere.invalid", "--plain-http"), "nowhere.invalid"),
        (("-m", "embedded", "-m", "embedded"), "two models are called embedded"),
        (("-m", "=embedded"), "give NAME=MODEL"),
        (("-m", "/no/such/model"), "/no/such/model"),
        (("--memory", "0"), "give GiB above 0"),
        (("--slots", "0"), "slots is 0"),
        (("--most-requests", "0"), "most_requests is 0"),
        (("--cache", "/tmp", "--no-cache"), "contradict each other"),
        (("--prices", str(tmp_path / "none.toml")), "cannot be read"),
        (("--prices", str(prices)), "prices.toml"),
    ):
        assert said in refused(*options)
    with Ledger.open(tmp_path / "data" / "ledger.db") as ledger:
        assert ledger.keys() == []  # none is made for a server that does not start


def test_a_model_is_billed_under_its_own_name_where_it_has_one(tmp_path: Path) -> None:
    prices = tmp_path / "prices.toml"
    price = 'from = 2026-01-01\nhit = 1\nmiss = 2\noutput = 3\nsource = "us"\n'
    prices.write_text(f'[[prices]]\nmodel = "mine"\n{price}')
    with served(tmp_path, "--prices", str(prices), "-m", "mine=embedded", "-m", "embedded", "--no-cache") as server:
        secret = re.findall(r"nrw_\w+", server.greeting)[0]
        told = get(f"{server.url}/api/prices", secret)[1]
        models = {model["model"]: model for model in told["models"] if model["served"]}
        assert models["mine"]["picodollars"] == {"hit": 1_000_000, "miss": 2_000_000, "output": 3_000_000}
        assert models["embedded"]["priced_as"] == "self-hosted"
        body = {"model": "mine", "prompt": "a = ", "max_tokens": 4}
        usage = get(f"{server.url}/v1/completions", secret, body)[1]["usage"]
        assert float(usage["cost"]) * 1e6 == pytest.approx(usage["prompt_tokens"] * 2 + usage["completion_tokens"] * 3)
    assert not (tmp_path / "cache" / "prefixes").exists()
