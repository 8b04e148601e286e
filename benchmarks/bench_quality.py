"""How good a code model is on packages that it never saw, beside compressors and a small general model.

Parts, each of which runs alone with `--only`; what the others found before is kept where it belongs to the same files
and the same model:

- model: bits per byte on a fixed sample of held-out files, each cut at 8,000 characters. Files longer than the model's
  trained context go through in windows as long as that context, half of each counted, so that every token sees all
  before it or at least half the context.
- compressors: xz -9e, and zstd -19 with a dictionary learnt from training files.
- peer: SmolLM2-135M, where its packages are installed (see `quality_peer`). It takes most of the time.
- position: bits per byte by place in the context, and with all but the last 128 tokens cut away.
- context: bits per byte of the same tokens, with more and more before them.
- fim: the rest of 200 lines, exactly; the bodies of 40 functions, parsed.
- master: what rounding cost, beside the weights as trained (`--master`).

The work is bounded whatever the corpus: about a million tokens through the model, 23,000 decoded ones at most, and 0.15
million tokens through SmolLM2. With a model of 8 M parameters that is some five minutes of one core, and a quarter of
an hour more for SmolLM2.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks import (
    quality_bits,
    quality_completion,
    quality_compressors,
    quality_peer,
    quality_position,
    quality_sample,
    record,
)
from narrows.checkpoints.hub import fetch
from narrows.corpus.shards import Corpus
from narrows.engine.model import Model, load
from narrows.errors import NarrowsError, UsageError
from narrows.model.network import Network

PARTS = ("model", "compressors", "peer", "position", "context", "fim", "master")
FILES = 64
POSITION_TOKENS = 2**17
LINES, BODIES = 200, 40
DEFAULT_CORPUS = Path("runs/code-corpus")

NO_CORPUS = f"""{DEFAULT_CORPUS} is absent, so quality is not measured. To make it (downloads, then some minutes):
    narrows data build recipes/code-model/packages.toml {DEFAULT_CORPUS}"""

# The rows of the table, in their order: what each entry is called there.
LABELS = {
    "shipped": "narrows, as shipped",
    "master": "narrows, before rounding (BF16)",
    "without_compression": "narrows, trained as long without CSA and HCA",
    "peer": "SmolLM2-135M-Instruct, 4 bits",
    "xz_in_one": "xz -9e, all files in one",
    "zstd_in_one": "zstd -19 with a dictionary, all files in one",
    "zstd_by_file": "zstd -19 with a dictionary, file by file",
    "xz_by_file": "xz -9e, file by file",
}
_OF_MODEL = ("shipped", "master", "without_compression")

SHIPPED, SHORT, WITHOUT = "all before", f"{quality_position.SHORT_CONTEXT} tokens before", "without CSA and HCA"


@dataclass
class Measured:
    """One model: its directory, what tells it from others, and the model itself, loaded when first asked for."""

    source: str
    directory: Path = field(init=False)

    def __post_init__(self) -> None:
        self.directory = fetch(self.source)

    @cached_property
    def model(self) -> Model:
        return load(self.directory, precision="float32")

    @property
    def network(self) -> Network:
        """The model's own, in PyTorch: what is measured takes whole batches."""
        network = self.model.network
        assert isinstance(network, Network)
        return network

    @cached_property
    def sha256(self) -> str:
        """Of config, tokenizer and weights."""
        return quality_sample.digest(part for file in self._files() for part in (file.name.encode(), file.read_bytes()))

    @property
    def stored_bytes(self) -> int:
        return sum(file.stat().st_size for file in self._files())

    @property
    def context(self) -> int:
        """Tokens it was trained to read at once."""
        config = self.model.config
        return config.trained_context or config.max_position_embeddings

    def _files(self) -> list[Path]:
        names = {"config.json", "tokenizer.json"}
        return sorted(file for file in self.directory.iterdir() if file.name in names or file.suffix == ".safetensors")


class Bench:
    """One run: a corpus, its sample, the models, and what earlier runs found about the same."""

    def __init__(self, options: argparse.Namespace, corpus: Corpus) -> None:
        self.options, self.corpus = options, corpus
        self.console = Console(stderr=True)
        self.shipped = Measured(options.model)
        self.master = Measured(options.master) if options.master else None
        self.without = Measured(options.without_compression) if options.without_compression else None
        for other in (self.master, self.without):
            if other and other.model.tokenizer.vocab_size != self.shipped.model.tokenizer.vocab_size:
                raise UsageError(f"{other.source} has another tokenizer than {self.shipped.source}; give its sibling.")
        self.files = quality_sample.held_out_files(corpus, options.files)
        if not self.files:
            raise NarrowsError(f"{corpus.directory} holds no held-out file of {quality_sample.SHORTEST} bytes or more.")
        self.texts = [file.beginning for file in self.files]
        self.files_sha256 = quality_sample.digest_of_files(self.files)
        self.size = sum(len(text.encode()) for text in self.texts)

    # Bits per byte on files

    def bits_per_byte(self) -> None:
        """The parts that `quality.json` holds."""
        entries = self._kept()
        parts: dict[str, Callable[[], dict[str, dict[str, Any]]]] = {
            "model": self._models,
            "compressors": self._compressors,
            "peer": self._peer,
            "master": self._master,
        }
        fresh: set[str] = set()
        for part, measure in parts.items():
            if part in self.options.only:
                found = measure()
                fresh |= set(found)
                about = {"files_sha256": self.files_sha256, "measured": f"{datetime.now(UTC):%Y-%m-%d}"}
                entries |= {name: {"label": LABELS[name], **about, **entry} for name, entry in found.items()}
        ordered = {name: entries[name] for name in LABELS if name in entries}
        if not ordered:
            return
        rows = [
            [entry["label"], entry["bits_per_byte"], entry["stored_bytes"] / 1e6 if "stored_bytes" in entry else None]
            for entry in ordered.values()
        ]
        packages = len({file.package for file in self.files})
        kept = [f"{entry['label']} ({entry['measured']})" for name, entry in ordered.items() if name not in fresh]
        self._record(
            "quality",
            {
                "entries": ordered,
                "files": [f"{file.package}/{file.path}" for file in self.files],
                "files_sha256": self.files_sha256,
                "bytes": self.size,
                "table": {
                    "columns": [f"{len(self.files)} files of {packages} held-out packages", "bits per byte", "MB"],
                    "rows": rows,
                },
            },
            notes=f"{self.size:,} bytes, at most {quality_sample.LONGEST:,} characters of a file; MB is what the "
            "weights take on disk." + (f" Kept from runs before: {'; '.join(kept)}." if kept else ""),
        )

    def _kept(self) -> dict[str, dict[str, Any]]:
        """What earlier runs found on the same files, of the same model where one took part."""
        entries: dict[str, dict[str, Any]] = _before("quality").get("entries", {})
        return {
            name: entry
            for name, entry in entries.items()
            if entry["files_sha256"] == self.files_sha256
            and (name not in _OF_MODEL or entry["beside_sha256"] == self.shipped.sha256)
        }

    def _models(self) -> dict[str, dict[str, Any]]:
        found = {"shipped": self._of_model("shipped", self.shipped)}
        if self.without:
            found["without_compression"] = self._of_model("without_compression", self.without)
        return found

    def _master(self) -> dict[str, dict[str, Any]]:
        return {"master": self._of_model("master", self.master)} if self.master else {}

    def _of_model(self, name: str, measured: Measured) -> dict[str, Any]:
        model, context = measured.model, measured.context
        ids = [model.tokenizer.encode(text) for text in self.texts]
        with self._bar(LABELS[name], len(ids)) as progress:
            found = quality_bits.nats(
                measured.network, model.tokenizer, ids, context=context, stride=max(1, context // 2), progress=progress
            )
        return {
            "bits_per_byte": sum(map(quality_bits.bits, found)) / self.size,
            "tokens": sum(map(len, ids)),
            "context": context,
            "parameters": measured.network.parameter_count,
            "stored_bytes": measured.stored_bytes,
            "sha256": measured.sha256,
            "beside_sha256": self.shipped.sha256,
        }

    def _compressors(self) -> dict[str, dict[str, Any]]:
        texts = [text.encode() for text in self.texts]
        compressors: dict[str, tuple[quality_compressors.Compress, dict[str, Any]]] = {
            "xz": (quality_compressors.xz, {})
        }
        if quality_compressors.has_zstandard():
            samples = quality_sample.training_beginnings(self.corpus, quality_compressors.DICTIONARY_FILES)
            compress, version = quality_compressors.zstd_with_dictionary([text.encode() for text in samples])
            facts = {"zstandard": version, "dictionary_bytes": quality_compressors.DICTIONARY_BYTES}
            compressors["zstd"] = (compress, {**facts, "dictionary_files": len(samples)})
        else:
            self._say("zstd is left out: the package zstandard is not installed.")
        found = {}
        for name, (compress, facts) in compressors.items():
            for how, value in quality_compressors.bits_per_byte(compress, texts).items():
                found[f"{name}_{how}"] = {**facts, "bits_per_byte": value}
        return found

    def _peer(self) -> dict[str, dict[str, Any]]:
        if absent := quality_peer.missing():
            self._say(f"SmolLM2 is left out: not installed are {', '.join(absent)} (see benchmarks/quality_peer.py).")
            return {}
        with self._bar(LABELS["peer"], len(self.texts)) as progress:
            return {"peer": quality_peer.bits_per_byte(quality_peer.weights(), self.texts, progress)}

    # The context and completions

    def position(self) -> None:
        """`quality_position.json` and its picture."""
        pieces, length = self._long_pieces("position"), self.shipped.context
        if not pieces:
            return
        pieces_sha256 = quality_sample.digest(piece.astype("<u4").tobytes() for piece in pieces)
        before = _before("quality_position")
        same = (before.get("pieces_sha256"), before.get("sha256")) == (pieces_sha256, self.shipped.sha256)
        curves: dict[str, list[float]] = {}
        for label, measured, short in (
            (SHIPPED, self.shipped, False),
            (SHORT, self.shipped, True),
            (WITHOUT, self.without, False),
        ):
            if measured:
                with self._bar(f"position, {label}", len(pieces)) as progress:
                    curves[label] = quality_position.measure(
                        measured.network, measured.model.tokenizer, pieces, short=short, progress=progress
                    )
            elif same and label in before["curves"]:
                curves[label] = before["curves"][label]
        table = quality_position.table(length, curves)
        self._record(
            "quality_position",
            {
                "curves": curves,
                "buckets": quality_position.buckets(length),
                "pieces": len(pieces),
                "pieces_sha256": pieces_sha256,
                "sha256": self.shipped.sha256,
                "table": table,
            },
            notes=f"{len(pieces)} pieces of {length:,} tokens from held-out packages, files in their order as training "
            f"packs them; the same tokens in every column. Cut, each sees {quality_position.SHORT_CONTEXT} to "
            f"{quality_position.SHORT_CONTEXT + quality_position.SHORT_STRIDE - 1} tokens before it.",
        )
        if not self.trial:
            quality_position.plot(record.RESULTS / "quality_position.png", length, curves)

    def context(self) -> None:
        """`quality_context.json`."""
        pieces = self._long_pieces("context")
        if not pieces:
            return
        model = self.shipped.model
        with self._bar("context", 5) as progress:
            found = quality_position.by_context(self.shipped.network, model.tokenizer, pieces, progress)
        self._record(
            "quality_context",
            {
                "bits_per_byte": found,
                "sha256": self.shipped.sha256,
                "table": {
                    "columns": ["tokens shown before", "bits per byte"],
                    "rows": [[before, f"{value:.4f}"] for before, value in found.items()],
                },
            },
            notes=f"The last {quality_position.COUNTED} tokens of {len(pieces)} pieces of held-out packages: in every "
            "row the same.",
        )

    def _long_pieces(self, part: str) -> list[Any]:
        """Pieces of held-out packages as long as the trained context; says so where there is none."""
        length = self.shipped.context
        count = max(1, POSITION_TOKENS * self.options.files // (FILES * length))
        pieces = quality_sample.long_pieces(self.corpus, self.shipped.model.tokenizer, length, count)
        if not pieces:
            self._say(f"{part} is left out: no held-out package has {length} tokens.")
        return pieces

    def fim(self) -> None:
        """`quality_fim.json`."""
        lines, bodies = (max(1, most * self.options.files // FILES) for most in (LINES, BODIES))
        model = self.shipped.model
        places = quality_completion.line_places(self.files, lines)
        with self._bar("fim, lines", len(places)) as progress:
            of_lines = quality_completion.measure_lines(model, places, progress)
        places = quality_completion.body_places(self.files, bodies)
        with self._bar("fim, bodies", len(places)) as progress:
            of_bodies = quality_completion.measure_bodies(model, places, progress)
        rows = [
            ["rest of a line: exact", of_lines["exact"], of_lines["places"]],
            ["rest of a line: exact up to its end", of_lines["exact_first_line"], of_lines["places"]],
        ]
        for part in of_lines["by_length"]:
            least, most = part["characters"]
            hidden = f"{least} to {most}" if most else f"{least} or more"
            rows.append([f"of these, {hidden} characters hidden: exact", part["exact"], part["places"]])
        rows += [
            ["function body: the file parses again", of_bodies["parse"], of_bodies["places"]],
            [f"function body: ended within {quality_completion.BODY_TOKENS} tokens", of_bodies["ended"], len(places)],
            ["function body: exact", of_bodies["exact"], len(places)],
        ]
        self._record(
            "quality_fim",
            {
                "lines": of_lines,
                "bodies": of_bodies,
                "sha256": self.shipped.sha256,
                "files_sha256": self.files_sha256,
                "table": {"columns": ["filled in the middle, greedy", "places", "of"], "rows": rows},
            },
            notes="Places drawn in held-out files, text before and behind given as `narrows complete` gives it; bodies "
            f"of {quality_completion.BODY_LINES[0]} to {quality_completion.BODY_LINES[1]} lines.",
        )

    # What is kept, and what is said meanwhile

    @property
    def trial(self) -> bool:
        """Whether fewer (or more) files were asked for than what documents tell of."""
        return self.options.files != FILES

    def _record(self, name: str, figures: dict[str, Any], notes: str) -> None:
        """Into benchmarks/results, unless this is a trial: that is shown and kept nowhere."""
        if self.trial:
            print(json.dumps({name: figures, "notes": notes}, ensure_ascii=False, indent=2, sort_keys=True))
        else:
            record.record(name, figures, notes=notes)

    def _say(self, sentence: str) -> None:
        self.console.print(sentence, highlight=False)

    @contextlib.contextmanager
    def _bar(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A line on standard error that counts."""
        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=self.console) as bar:
            task = bar.add_task(label, total=total)
            yield lambda done: bar.update(task, completed=done)


def _before(name: str) -> dict[str, Any]:
    """The figures that an earlier run recorded; none where there are none."""
    try:
        figures = json.loads((record.RESULTS / f"{name}.json").read_text(encoding="utf-8"))["figures"]
    except (OSError, ValueError, KeyError):
        return {}
    return figures if isinstance(figures, dict) else {}


def _parts(text: str) -> list[str]:
    chosen = text.split(",")
    unknown = [part for part in chosen if part not in PARTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"there is no part {unknown[0]!r}; choose from {', '.join(PARTS)}")
    return chosen


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of files; give 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command: 0, also where there is no corpus yet (it then says how to make one); 1 or 2 for what is wrong."""
    summary = (__doc__ or "").partition("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_quality", description=summary)
    parser.add_argument("--model", default="embedded", help="a directory, a hub id or 'embedded'")
    parser.add_argument("--corpus", type=Path, help=f"what `narrows data build` wrote; {DEFAULT_CORPUS} unless given")
    parser.add_argument("--master", help="the directory of the same run's weights before rounding")
    parser.add_argument("--without-compression", help="the directory of a model without CSA and HCA, trained as long")
    parser.add_argument("--only", type=_parts, default=list(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--files", type=_at_least_one, default=FILES, help="fewer, for a trial: shown, not recorded")
    options = parser.parse_args(arguments)
    if options.corpus is None and not DEFAULT_CORPUS.is_dir():
        print(NO_CORPUS, file=sys.stderr)
        return 0
    if "master" in options.only and len(options.only) == 1 and not options.master:
        parser.error("the part master needs --master DIR")
    try:
        bench = Bench(options, Corpus(options.corpus or DEFAULT_CORPUS))
        if {"model", "compressors", "peer", "master"} & set(options.only):
            bench.bits_per_byte()
        if "position" in options.only:
            bench.position()
        if "context" in options.only:
            bench.context()
        if "fim" in options.only:
            bench.fim()
    except NarrowsError as error:
        print(error, file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
