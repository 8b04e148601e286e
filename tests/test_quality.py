"""The quality benchmark counts every token and byte once, draws the same places for ever, and keeps only what fits."""

import ast
import json
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import bench_quality, quality_bits, quality_completion, quality_compressors, quality_position, record
from benchmarks.quality_completion import BODY_LINES, Place, body_places, line_places, measure_bodies, measure_lines
from benchmarks.quality_sample import SHORTEST, SampledFile, draw, held_out_files, long_pieces
from narrows.corpus.shards import Corpus
from narrows.engine.model import Model, load
from narrows.training.evaluate import bits_per_byte

MODULE = '''\
"""Numbers."""

import math


class Sum:
    def add(self, one, other):
        total = one + other
        self.last = total
        return total

    @property
    def short(self): return 1

    def outer(self):
        @property
        def inner():
            return math.pi
        return inner
'''

SOURCES = {"alpha": 40, "beta": 3, "gamma": 9}  # files of each held-out package


@pytest.fixture(scope="module")
def model() -> Model:
    return load("embedded", precision="float32")


@pytest.fixture(scope="module")
def corpus(model: Model) -> Any:
    """What the benchmark asks of a Corpus, in memory: files that differ, of the model's own tokenizer."""
    files = {
        split: [
            (package, f"{package}/{number}.py", f"# {split} {package} {number}\n" + MODULE * (1 + number % 5))
            for package, count in SOURCES.items()
            for number in range(count)
        ]
        for split in ("train", "held_out")
    }
    return SimpleNamespace(
        directory=Path("corpus"),
        documents=lambda split: len(files[split]),
        package=lambda split, index: SimpleNamespace(name=files[split][index][0]),
        path=lambda split, index: files[split][index][1],
        text=lambda split, index: files[split][index][2],
        bytes=lambda split, index: len(files[split][index][2].encode()),
    )


@pytest.fixture(scope="module")
def files(corpus: Any) -> list[SampledFile]:
    return held_out_files(corpus, 6)


@given(length=st.integers(0, 300), context=st.integers(1, 80), share=st.floats(0.01, 1))
def test_windows_count_every_token_once_with_the_context_promised(length: int, context: int, share: float) -> None:
    stride = max(1, int(context * share))
    found = list(quality_bits.windows(length, context, stride))
    assert [place for _, scored, end in found for place in range(scored, end)] == list(range(length))
    for start, scored, end in found:
        assert 0 <= start <= scored < end <= start + context
        assert start == 0 or (end - start == context and scored - start >= context - stride)


@pytest.mark.parametrize("stride", [0, 9])
def test_a_stride_that_skips_tokens_is_refused(stride: int) -> None:
    with pytest.raises(ValueError, match="stride"):
        list(quality_bits.windows(100, 8, stride))


def test_bits_of_whole_texts_are_those_that_training_measures(model: Model, files: list[SampledFile]) -> None:
    ids = [model.tokenizer.encode(file.text) for file in files]
    longest = max(map(len, ids))
    found = quality_bits.nats(model.network, model.tokenizer, ids, context=longest, stride=longest)
    ours = sum(map(quality_bits.bits, found)) / sum(len(file.text.encode()) for file in files)
    assert ours == pytest.approx(bits_per_byte(model.network, model.tokenizer, ids, rows=4096), rel=1e-5)


def test_a_token_in_a_window_sees_the_window_and_nothing_else(model: Model) -> None:
    ids = model.tokenizer.encode(MODULE * 3)[:150]
    (found,) = quality_bits.nats(model.network, model.tokenizer, [ids], context=64, stride=16)
    last = list(quality_bits.windows(len(ids), 64, 16))[-1]
    inside = [model.tokenizer.bos_id, *ids[last.start : last.end]]
    expected = -model.logits(inside)[:-1].log_softmax(-1).gather(1, torch.tensor(inside[1:])[:, None]).squeeze(1)
    torch.testing.assert_close(found[last.scored :].float(), expected[last.scored - last.start :], rtol=1e-3, atol=1e-3)


def test_the_longest_context_gives_what_a_whole_pass_gives(model: Model) -> None:
    random = np.random.default_rng(0)
    pieces = [random.integers(10, model.tokenizer.vocab_size, 700) for _ in range(2)]
    found = quality_position.by_context(model.network, model.tokenizer, pieces)
    assert list(found) == [128, 256, 444]
    texts = [piece.tolist() for piece in pieces]
    whole = quality_bits.nats(model.network, model.tokenizer, texts, context=700, stride=700)
    ends = [text[-quality_position.COUNTED :] for text in texts]
    size = sum(len(model.tokenizer.bytes_of(token)) for end in ends for token in end)
    bits = sum(quality_bits.bits(values[-quality_position.COUNTED :]) for values in whole)
    assert found[444] == pytest.approx(bits / size, rel=1e-5)


@given(count=st.integers(0, 60), fewer=st.integers(0, 60))
def test_a_shorter_draw_begins_a_longer_one_and_packages_take_turns(corpus: Any, count: int, fewer: int) -> None:
    found = draw(corpus, "held_out", count)
    assert len(set(found)) == len(found) == min(count, sum(SOURCES.values()) - short_files(corpus))
    assert found[:fewer] == draw(corpus, "held_out", min(fewer, count))
    taken = dict.fromkeys(SOURCES, 0)
    for index in found:
        taken[corpus.package("held_out", index).name] += 1
    for name, size in SOURCES.items():  # none is behind another but because it has no more
        assert taken[name] >= min(size - short_files(corpus, name), max(taken.values()) - 1)


def test_a_package_keeps_its_order_when_others_leave_the_corpus(corpus: Any) -> None:
    def of(name: str, among: Any) -> list[str]:
        found = held_out_files(among, 1000)
        return [file.path for file in found if file.package == name]

    last = [index for index in range(corpus.documents("held_out")) if corpus.package("held_out", index).name == "gamma"]
    alone = SimpleNamespace(**vars(corpus))
    alone.documents = lambda split: len(last)
    for name in ("package", "path", "text", "bytes"):
        setattr(alone, name, lambda split, index, name=name: getattr(corpus, name)(split, last[index]))
    assert of("gamma", alone) == of("gamma", corpus)


def short_files(corpus: Any, name: str | None = None) -> int:
    return sum(
        corpus.bytes("held_out", index) < SHORTEST and name in (None, corpus.package("held_out", index).name)
        for index in range(corpus.documents("held_out"))
    )


def test_long_pieces_are_text_of_one_package_with_eos_between_its_files(corpus: Any, model: Model) -> None:
    pieces = long_pieces(corpus, model.tokenizer, 200, 9)
    assert 6 <= len(pieces) <= 9  # three of each package, but fewer of the smallest
    texts = [model.tokenizer.decode(piece.tolist()) for piece in pieces]
    for piece, text in zip(pieces, texts, strict=True):
        assert len(piece) == 200
        assert sum(f"# held_out {name} " in text for name in SOURCES) <= 1
    assert any(model.tokenizer.eos_id in piece for piece in pieces)
    assert [list(piece) for piece in long_pieces(corpus, model.tokenizer, 200, 9)] == [list(piece) for piece in pieces]


@given(length=st.integers(1, 5000))
def test_buckets_cover_every_place_once(length: int) -> None:
    found = quality_position.buckets(length)
    assert [place for start, end in found for place in range(start, end)] == list(range(length))


def test_the_far_part_is_cut_away_behind_the_first_bucket_only(model: Model, corpus: Any) -> None:
    pieces = long_pieces(corpus, model.tokenizer, 400, 3)
    full = quality_position.measure(model.network, model.tokenizer, pieces, short=False)
    short = quality_position.measure(model.network, model.tokenizer, pieces, short=True)
    assert full[0] == pytest.approx(short[0], rel=1e-4)
    assert all(value != pytest.approx(other, rel=1e-4) for value, other in zip(full[1:], short[1:], strict=True))


def test_eos_is_no_text_and_counts_neither_bits_nor_bytes(model: Model) -> None:
    ids = model.tokenizer.encode(MODULE)[:60]
    ends = [*ids[:30], model.tokenizer.eos_id, *ids[30:]]
    (nats,) = quality_bits.nats(model.network, model.tokenizer, [ends], context=61, stride=61)
    (value,) = quality_position.measure(model.network, model.tokenizer, [np.array(ends)], short=False)
    size = len(model.tokenizer.decode(ids).encode())
    assert value == pytest.approx((float(nats.sum()) - float(nats[30])) / math.log(2) / size, rel=1e-6)


@given(texts=st.lists(st.binary(min_size=1, max_size=400), min_size=1, max_size=5))
def test_compressed_bits_are_those_of_the_frames(texts: list[bytes]) -> None:
    found = quality_compressors.bits_per_byte(lambda data: data + b"!", texts)
    size = sum(map(len, texts))
    assert found == {"by_file": 8 * (size + len(texts)) / size, "in_one": 8 * (size + 1) / size}


def test_xz_takes_what_repeats_once() -> None:
    text = np.random.default_rng(0).bytes(2000)
    found = quality_compressors.bits_per_byte(quality_compressors.xz, [text] * 8)
    assert found["in_one"] < found["by_file"] / 6


def test_zstd_gains_from_its_dictionary() -> None:
    pytest.importorskip("zstandard")
    samples = [f"{MODULE}\nVALUE_{number} = {number**3}\n".encode() for number in range(300)]
    compress, _ = quality_compressors.zstd_with_dictionary(samples)
    other, _ = quality_compressors.zstd_with_dictionary([np.random.default_rng(n).bytes(500) for n in range(300)])
    assert len(compress(MODULE.encode())) < len(other(MODULE.encode())) / 2


def test_line_places_hide_the_rest_of_a_line_and_something_at_least(files: list[SampledFile]) -> None:
    places = line_places(files, 50)
    assert len(places) == 50
    assert {place.text for place in places} == {file.text for file in files}
    for place in places:
        assert place.hidden.strip()
        assert "\n" not in place.hidden
        assert place.text[place.end : place.end + 1] in ("", "\n")
        assert place.filled(place.hidden) == place.text
    assert places == line_places(files, 50)


def test_a_body_is_whole_lines_without_which_nothing_parses() -> None:
    places = body_places([SampledFile("package", "path", MODULE)], 10)
    hidden = {place.hidden for place in places}
    assert hidden == {
        "        total = one + other\n        self.last = total\n        return total",
        "        @property\n        def inner():\n            return math.pi\n        return inner",
    }
    for place in places:
        assert BODY_LINES[0] <= place.hidden.count("\n") + 1 <= BODY_LINES[1]
        assert ast.dump(ast.parse(place.filled(place.hidden))) == ast.dump(ast.parse(MODULE))
        assert not quality_completion.parses(place.filled(""))


@pytest.mark.parametrize("text", ["def broken(:\n", "a = 1\0", "x = 1\r\ndef f():\n    a\n    b\n"])
def test_files_that_cannot_be_counted_on_have_no_bodies(text: str) -> None:
    assert body_places([SampledFile("package", "path", text)], 3) == []


class Oracle:
    """Stands for a Model that completes as told: every place with the same text, ended or not."""

    def __init__(self, model: Model, text: str, *, ends: bool) -> None:
        self.tokenizer, self.config, self._text, self._ends = model.tokenizer, model.config, text, ends

    def stream(self, prompt: str, *, suffix: str, max_tokens: int) -> Any:
        class Told:
            finish_reason = "length"

            def __iter__(this) -> Iterator[str]:  # noqa: N805
                yield from self._text
                this.finish_reason = "stop" if self._ends else "length"

        return Told()


@pytest.mark.parametrize(
    ("written", "ends", "exact", "first_line"),
    [
        ("one + other", True, 1, 1),
        ("one + other  ", True, 1, 1),
        ("one + other\n", True, 0, 1),
        ("one + other\n        more", False, 0, 1),
        ("one + other", False, 0, 0),
        ("one + othe", True, 0, 0),
        ("", True, 0, 0),
    ],
)
def test_a_line_is_exact_only_when_nothing_else_is_written(
    model: Model, written: str, ends: bool, exact: int, first_line: int
) -> None:
    start = MODULE.index("one + other")
    places = [Place(MODULE, start, start + len("one + other"))]
    found = measure_lines(Oracle(model, written, ends=ends), places)  # type: ignore[arg-type]
    assert (found["exact"], found["exact_first_line"], found["places"]) == (exact, first_line, 1)
    assert [part["places"] for part in found["by_length"]] == [0, 1, 0]


@pytest.mark.parametrize(
    ("written", "ends", "parse"), [("        pass", True, 1), ("        pass", False, 1), ("(", True, 0), ("", True, 0)]
)
def test_bodies_count_when_the_file_parses(model: Model, written: str, ends: bool, parse: int) -> None:
    places = body_places([SampledFile("package", "path", MODULE)], 1)
    found = measure_bodies(Oracle(model, written, ends=ends), places)  # type: ignore[arg-type]
    assert found == {"places": 1, "parse": parse, "ended": int(ends), "exact": 0}


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Any) -> Path:
    """A folder of our own for results; the corpus is the one above; six files are the whole sample."""
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(bench_quality, "FILES", 6)
    monkeypatch.setattr(bench_quality, "POSITION_TOKENS", 2048)
    monkeypatch.setattr(bench_quality, "LINES", 2)
    monkeypatch.setattr(bench_quality, "BODIES", 1)
    monkeypatch.setattr(bench_quality, "Corpus", lambda directory: corpus)
    return tmp_path / "results"


def run(*arguments: str) -> int:
    return bench_quality.main(["--corpus", "anywhere", "--files", "6", *arguments])


def read(results: Path, name: str) -> Any:
    return json.loads((results / f"{name}.json").read_text())["figures"]


def test_a_part_that_does_not_run_keeps_its_figures(results: Path) -> None:
    assert run("--only", "compressors") == 0
    first = read(results, "quality")["entries"]
    assert run("--only", "model,master", "--master", "embedded") == 0
    both = read(results, "quality")
    assert {name: both["entries"][name] for name in first} == first
    assert both["entries"]["shipped"]["bits_per_byte"] == both["entries"]["master"]["bits_per_byte"]
    values = [both["entries"][name]["bits_per_byte"] for name in bench_quality.LABELS if name in both["entries"]]
    assert [row[1] for row in both["table"]["rows"]] == values


def test_figures_of_other_files_or_another_model_are_not_kept(results: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--only", "model,compressors") == 0
    monkeypatch.setattr(bench_quality.Measured, "sha256", "another")
    assert run("--only", "compressors") == 0
    assert "shipped" not in read(results, "quality")["entries"]
    assert "xz_in_one" in read(results, "quality")["entries"]
    monkeypatch.setattr(bench_quality, "LABELS", {"shipped": bench_quality.LABELS["shipped"]})
    monkeypatch.setattr(bench_quality.quality_sample, "LONGEST", 600)
    assert run("--only", "model") == 0
    assert list(read(results, "quality")["entries"]) == ["shipped"]


def test_positions_and_completions_are_recorded_with_a_picture(results: Path) -> None:
    assert run("--only", "position,context,fim") == 0
    position, fim, context = (read(results, f"quality_{name}") for name in ("position", "fim", "context"))
    assert str(quality_position.SHORT_CONTEXT) in context["bits_per_byte"]
    assert len(context["table"]["rows"]) == len(context["bits_per_byte"])
    assert position["table"]["columns"][1:] == [bench_quality.SHIPPED, bench_quality.SHORT]
    assert len(position["table"]["rows"]) == len(position["buckets"])
    assert (results / "quality_position.png").read_bytes().startswith(b"\x89PNG")
    assert fim["lines"]["places"] == 2
    assert fim["bodies"]["places"] == 1


def test_a_trial_is_shown_and_kept_nowhere(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_quality.main(["--corpus", "anywhere", "--files", "2", "--only", "compressors"]) == 0
    assert not results.exists()
    assert "xz_in_one" in json.loads(capsys.readouterr().out)["quality"]["entries"]


def test_without_a_corpus_the_benchmark_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert bench_quality.main([]) == 0
    assert "narrows data build" in capsys.readouterr().err
    assert bench_quality.main(["--corpus", "absent"]) == 2
    assert "absent" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--only", "everything"], ["--files", "0"], ["--only", "master"]])
def test_nonsense_is_refused_before_anything_is_read(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench_quality.main(["--corpus", str(tmp_path / "absent"), *arguments])
    assert stopped.value.code == 2
    assert arguments[-1].split(",")[0] in capsys.readouterr().err


def test_the_corpus_above_stands_for_a_real_one(corpus: Any) -> None:
    for name in vars(corpus):
        assert name == "directory" or callable(getattr(Corpus, name))
