"""`narrows serve`: models behind the OpenAI and Anthropic protocols, for keys that are counted and charged."""

from __future__ import annotations

import ipaddress
import shutil
import signal
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from narrows.cli.options import DeviceOption, LedgerOption, PrecisionOption
from narrows.errors import NarrowsError, UsageError

if TYPE_CHECKING:
    from narrows.engine.limits import Limits
    from narrows.engine.model import Model
    from narrows.engine.store import Prefixes
    from narrows.ledger.ledger import Ledger
    from narrows.server.backend import ModelInfo
    from narrows.server.engine_backend import EngineBackend

_EVERYWHERE = ("0.0.0.0", "::", "")


def serve(
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            metavar="[NAME=]MODEL",
            help="'embedded', a directory, or a hub id; may be repeated. NAME is what requests call it. "
            "[default: embedded]",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="0 takes any that is free.")] = 8000,
    ledger: LedgerOption = None,
    prices: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            readable=False,
            help="A price book (TOML), by the names that requests use; others cost what ours says.",
        ),
    ] = None,
    chat: Annotated[
        bool | None,
        typer.Option(
            "--chat/--no-chat",
            help="Whether the models were trained to chat. [default: only those that were not trained here]",
        ),
    ] = None,
    slots: Annotated[int, typer.Option(metavar="N", help="Requests that a model computes at once; others wait.")] = 16,
    memory: Annotated[
        float | None,
        typer.Option(metavar="GIB", help="For a model's histories. [default: a quarter of what is free]"),
    ] = None,
    most_requests: Annotated[int, typer.Option(metavar="N", help="Under way or waiting; more are refused.")] = 256,
    drain_seconds: Annotated[
        float, typer.Option(metavar="S", help="What is under way may take so long when the server ends.")
    ] = 30.0,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A name that clients call this server by; may be repeated."),
    ] = None,
    certificate: Annotated[
        Path | None, typer.Option(metavar="FILE", readable=False, help="PEM; with --private-key for HTTPS.")
    ] = None,
    private_key: Annotated[Path | None, typer.Option(metavar="FILE", readable=False, help="PEM.")] = None,
    plain_http: Annotated[
        bool,
        typer.Option("--plain-http", help="Let other machines in unencrypted: something in front encrypts."),
    ] = False,
    log: Annotated[
        Path | None,
        typer.Option(metavar="FILE", readable=False, help="Append the log to it. [default: standard error]"),
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            readable=False,
            help="Where prompts that were read are kept for the next start. [default: as for narrows complete]",
        ),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Keep nothing, use nothing kept.")] = False,
    device: DeviceOption = "cpu",
    precision: PrecisionOption = None,
) -> None:
    """Serve models until interrupted: the OpenAI and Anthropic protocols, and a page for the browser.

    On this machine alone unless --host says otherwise. Everybody needs a key; where there is none, the first start
    makes one and shows it once.
    """
    named = _named(model or ["embedded"])
    names = _hosts(host, allow_host or [])
    secured = _check_tls(host, certificate, private_key, plain_http)
    if cache is not None and no_cache:
        raise UsageError("--cache and --no-cache contradict each other; give one of them.")

    from narrows.cli.complete import kept_prefixes
    from narrows.economics.prices import PriceBook
    from narrows.engine.model import load
    from narrows.ledger.ledger import Ledger
    from narrows.server.app import create_app
    from narrows.server.ledger_accounts import LedgerAccounts
    from narrows.server.listen import Server
    from narrows.server.log import log_to
    from narrows.server.settings import Settings
    from narrows.server.tariff import Tariff

    settings = Settings(hosts=names, most_requests=most_requests, drain_seconds=drain_seconds)
    book = PriceBook.load(prices)
    with ExitStack() as stack:
        opened = stack.enter_context(Ledger.open(ledger))
        if not _loopback(host) and not _has_keys(opened):
            raise UsageError(
                f"{opened.where} has no key that is good, and {host or 'every address'} is open to other machines; "
                "make one first: narrows keys create NAME."
            )
        tariff = Tariff(book, named)
        for name in named:
            tariff.entry(name, datetime.now(UTC).date())  # before any weight is read
        limits, prefixes = _limits(slots, memory), None if no_cache else kept_prefixes(cache)
        backends = [
            _backend(name, load(source, device=device, precision=precision), chat, limits, prefixes)
            for name, source in named.items()
        ]
        accounts = LedgerAccounts(opened, tariff)
        app = create_app(backends, accounts, settings)
        server = Server(app, host, port, certificate=certificate, private_key=private_key)
        secret = None if _has_keys(opened) else opened.create_key("first", scopes=("inference", "admin"))[1]
        stack.enter_context(accounts)
        log_to(sys.stderr if log is None else stack.enter_context(_appending(log)))
        shown = (allow_host or ["127.0.0.1"])[0] if host in _EVERYWHERE else host
        address = f"{'https' if secured else 'http'}://{f'[{shown}]' if ':' in shown else shown}:{server.port}"
        _greet(address, backends, opened, secret)
        for number in (signal.SIGINT, signal.SIGTERM):  # by then the server has heard them, and has ended
            signal.signal(number, lambda number, frame: None)
        server.run()


def _named(models: Sequence[str]) -> dict[str, str]:
    """What requests call the models, and where these are. UsageError for two of one name."""
    named: dict[str, str] = {}
    for given in models:
        name, separator, source = given.partition("=")
        if not separator:
            name, source = Path(given).absolute().name if Path(given).is_dir() else given, given
        if not name or not source:
            raise UsageError(f"--model is {given!r}; give NAME=MODEL, or MODEL alone.")
        if name in named:
            raise UsageError(f"two models are called {name}; give one of them another name: --model NAME={source}.")
        named[name] = source
    return named


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _hosts(host: str, allowed: Sequence[str]) -> frozenset[str]:
    """Names under which the server may be addressed. UsageError where nobody could address it."""
    from narrows.server.settings import LOOPBACK_NAMES

    own = () if host in _EVERYWHERE else (host,)
    if not _loopback(host) and not own and not allowed:
        raise UsageError(
            f"--host {host or repr(host)} listens on all addresses; say by which names clients call this server: "
            "--allow-host NAME."
        )
    return LOOPBACK_NAMES | {name.strip("[]").lower() for name in (*own, *allowed)}


def _check_tls(host: str, certificate: Path | None, private_key: Path | None, plain_http: bool) -> bool:
    """Whether it is HTTPS. UsageError where others could listen in unasked."""
    if (certificate is None) != (private_key is None):
        raise UsageError("--certificate and --private-key go together; give both, or neither.")
    if certificate is not None and plain_http:
        raise UsageError("--plain-http and --certificate contradict each other; give one of them.")
    if not _loopback(host) and certificate is None and not plain_http:
        raise UsageError(
            f"--host {host or repr(host)} is open to other machines, and keys would cross the network unencrypted; "
            "give --certificate and --private-key, or --plain-http where something in front encrypts."
        )
    return certificate is not None


def _has_keys(ledger: Ledger) -> bool:
    now = datetime.now(UTC)
    known = ledger.keys()
    return any(key.state(now) == "active" for key in known)


def _backend(name: str, loaded: Model, chat: bool | None, limits: Limits, prefixes: Prefixes | None) -> EngineBackend:
    from narrows.engine.model import Model
    from narrows.server.engine_backend import EngineBackend

    chats = loaded.config.trained_context is None if chat is None else chat
    return EngineBackend(Model(loaded.network, loaded.tokenizer, limits, prefixes), name, chat=chats)


def _limits(slots: int, memory: float | None) -> Limits:
    from narrows.engine.limits import Limits
    from narrows.engine.model import free_memory

    if memory is not None and not 0 < memory < 2**20:
        raise UsageError(f"--memory is {memory:g}; give GiB above 0.")
    return Limits(memory=free_memory() // 4 if memory is None else round(memory * 2**30), slots=slots)


def _appending(path: Path):  # type: ignore[no-untyped-def]  # a file, which is its own context
    try:
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise NarrowsError(f"{path} cannot be written ({error.strerror}); name another file for the log.") from None


def _served(info: ModelInfo) -> str:
    trained = f", trained on {info.trained:,}" if info.trained is not None else ""
    chats = "it chats" if info.chat else "it continues text and does not chat"
    return f"serving {info.name}: {chats}; {info.context:,} tokens of context{trained}"


def _greet(address: str, backends: Sequence[EngineBackend], ledger: Ledger, secret: str | None) -> None:
    """Say where it is and how it is used."""
    model = backends[0].info
    lines = [
        *(_served(one.info) for one in backends),
        f"  page         {address}/" + (f"#key={secret}" if secret else ""),
        f"  OpenAI       base URL {address}/v1",
        f"  Anthropic    base URL {address}",
        f"  ledger       {ledger.where}",
    ]
    if secret:
        lines.append(f"  first key    {secret}   (shown only now; it may do everything)")
    command = "narrows" if shutil.which("narrows") else sys.argv[0]
    lines.append(f"  more keys    {command} keys create NAME (with --scope admin one that may do everything)")
    asked = f'"model": "{model.name}", "prompt": "def fibonacci(n):", "max_tokens": 48, "temperature": 0'
    lines += [
        "Try it:",
        f"  curl -N {address}/v1/completions -H 'Authorization: Bearer {secret or 'KEY'}' \\",
        f"    -H 'Content-Type: application/json' -d '{{{asked}, \"stream\": true}}'",
        "Ctrl-C ends it.",
    ]
    print("\n".join(lines), flush=True)
