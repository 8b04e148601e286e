"""The loop: it learns, it can be killed without a trace, and it stops when numbers are no longer finite."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import narrows
from narrows.errors import NarrowsError
from narrows.text.tokenizer import FIM_BEGIN, FIM_HOLE
from narrows.training import loop
from narrows.training.journal import Journal
from narrows.training.loop import Run
from narrows.training.losses import training_losses
from tests.draws import draws
from tests.training.corpora import PACKAGES, TOKENIZER, recipe, write_corpus


def log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def weights(run: Run) -> dict[str, torch.Tensor]:
    return {**run.masters.parameters, **dict(run.network.named_buffers())}


def same(one: Run, other: Run) -> bool:
    its = weights(other)
    return all(torch.equal(weight, its[name]) for name, weight in weights(one).items())


def test_it_learns_and_ships_what_it_measured(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    stages = [{"steps": 15, "sample_length": 64, "rows_per_pass": 128}]
    run = Run(recipe(stages), corpus, tmp_path / "run")
    measured = run.train()
    records = log(tmp_path / "run")
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 15
    assert losses[-1] < 0.8 * losses[0]
    assert records[-1]["held_out_bits_per_byte"] == pytest.approx(measured, abs=1e-5)
    shipped, master = map(narrows.load, run.export())
    assert shipped.config.trained_context == 64
    text = PACKAGES["young"][0]
    tokens = torch.tensor([0, *TOKENIZER.encode(text)])
    losses = [
        torch.nn.functional.cross_entropy(model.logits(tokens.tolist())[:-1], tokens[1:]).item()
        for model in (shipped, master)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    for plot in ("loss.png", "experts.png"):
        assert (tmp_path / "run" / plot).read_bytes().startswith(b"\x89PNG")


def test_every_stage_trains_what_it_is_meant_to(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    run = Run(recipe(), corpus, tmp_path / "run")
    moved: list[set[str]] = []
    for steps in (3, 4, 7):
        before = {name: weight.detach().clone() for name, weight in run.masters.parameters.items()}
        stop_behind(run, steps)
        moved.append({name for name, weight in run.masters.parameters.items() if not torch.equal(weight, before[name])})
    everything = set(run.masters.parameters)
    indexers = {name for name in everything if ".indexer." in name}
    assert indexers
    mtp = {name for name in everything if name.startswith("mtp.")}
    assert mtp
    assert moved == [everything - indexers - mtp, indexers, everything]
    steps_taken = [record for record in log(tmp_path / "run") if "loss" in record]
    assert [record["index_loss"] > 0 for record in steps_taken] == [False] * 3 + [True] * 4
    assert [record["mtp_loss"] > 0 for record in steps_taken] == [False] * 3 + [True] * 4
    assert [any(record["loads"][-1]) for record in steps_taken] == [False] * 3 + [True] * 4  # of the MTP block's router
    assert all(any(load) for record in steps_taken for load in record["loads"][:-1])
    assert all(record["imbalance"] >= 1 for record in steps_taken)


def stop_behind(run: Run, steps: int) -> None:
    """Let `run` go on until it has taken so many steps in all."""

    class EnoughError(Exception):
        pass

    real = Journal.progress

    def progress(journal: Journal, step: int, text: str) -> None:
        real(journal, step, text)
        if step == steps:
            raise EnoughError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "progress", progress)
        if steps == run.recipe.steps:
            run.train()
            return
        # It stops behind the step after, before its state is saved: that step is taken back by reading the state.
        with pytest.raises(EnoughError):
            run.train()
    fresh = Run(run.recipe, run.corpus, run.directory)
    run.__dict__.update(fresh.__dict__)


@pytest.mark.parametrize("fast_products", [False, True])
def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path, fast_products: bool) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    asked = recipe(fast_products=fast_products)
    whole = Run(asked, corpus, tmp_path / "whole")
    whole.train()
    parts = Run(asked, corpus, tmp_path / "parts")
    for steps in (1, 3, 4, 6, 7):
        stop_behind(parts, steps)
    assert same(whole, parts)
    ours, theirs = log(tmp_path / "whole"), log(tmp_path / "parts")
    assert [record["step"] for record in theirs] == [record["step"] for record in ours]
    assert [record.get("loss") for record in theirs] == [record.get("loss") for record in ours]


@pytest.mark.parametrize("wanted", [False, True])
def test_fast_products_are_asked_for_within_a_step_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wanted: bool
) -> None:
    seen: dict[str, set[str]] = {"losses": set(), "evaluation": set()}

    def watch(name: str, function: Any) -> Any:
        def watched(*arguments: Any, **options: Any) -> Any:
            seen[name].add(torch.backends.mkldnn.matmul.fp32_precision)
            return function(*arguments, **options)

        return watched

    before = torch.backends.mkldnn.matmul.fp32_precision
    monkeypatch.setattr(loop, "training_losses", watch("losses", loop.training_losses))
    monkeypatch.setattr(loop, "bits_per_byte", watch("evaluation", loop.bits_per_byte))
    Run(recipe(fast_products=wanted), write_corpus(tmp_path / "corpus"), tmp_path / "run").train(until=2)
    assert seen == {"losses": {"bf16" if wanted else before}, "evaluation": {before}}


def test_a_run_stopped_behind_a_step_goes_on_from_there(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    whole, parts = (Run(recipe(), corpus, tmp_path / name) for name in ("whole", "parts"))
    whole.train()
    for until in (2, 5, None):
        Run(recipe(), corpus, tmp_path / "parts").train(until)
    parts = Run(recipe(), corpus, tmp_path / "parts")
    assert same(whole, parts)
    ours, theirs = ([r["step"] for r in log(tmp_path / name) if "loss" in r] for name in ("whole", "parts"))
    assert ours == theirs


TRAIN = """
import sys
from pathlib import Path
from narrows.corpus.shards import Corpus
from narrows.training.loop import Run
from tests.training.corpora import recipe
import torch
torch.set_num_threads(1)
print("ready", flush=True)
Run(recipe(), Corpus(sys.argv[1]), Path(sys.argv[2])).train()
"""


def test_a_run_killed_again_and_again_ends_with_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL, at moments spread over the run: 20 times in the soak."""
    write_corpus(tmp_path / "corpus")

    def start(name: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", TRAIN, str(tmp_path / "corpus"), str(tmp_path / name)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])

    whole = start("whole")
    assert whole.stdout is not None
    whole.stdout.readline()
    began = time.monotonic()
    whole.communicate()
    assert whole.returncode == 0
    seconds = time.monotonic() - began
    kills = 20 if draws() == 400 else 3
    killed = 0
    for number in range(kills):
        process = start("killed")
        assert process.stdout is not None
        process.stdout.readline()
        # Long enough to take a step now and then, however slow the machine has become.
        time.sleep(seconds * (0.2 + 0.6 * (number * 0.618 % 1)))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        killed += process.returncode == -signal.SIGKILL
    assert killed
    last = start("killed")
    last.communicate()
    assert last.returncode == 0
    states = [torch.load(tmp_path / name / "state.pt", weights_only=True) for name in ("whole", "killed")]
    for part in ("masters", "buffers"):
        assert all(torch.equal(tensor, states[1][part][name]) for name, tensor in states[0][part].items())


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_the_run(tmp_path: Path) -> None:
    run = Run(recipe([{"steps": 50, "sample_length": 48, "rows_per_pass": 48}]), write_corpus(tmp_path / "c"), tmp_path)
    with torch.no_grad():
        run.masters.parameters["norm.weight"][0] = torch.inf
    before = {name: weight.detach().clone() for name, weight in weights(run).items()}
    with pytest.raises(NarrowsError, match=r"10 steps in a row were skipped, up to step 10: the loss or its gradient"):
        run.train()
    assert all(torch.equal(weight, before[name]) for name, weight in weights(run).items())
    assert [record["skipped"] for record in log(tmp_path) if "skipped" in record] == [True] * 10


@pytest.mark.parametrize(("factor", "reason"), [(torch.inf, "not finite"), (1e4, "jumped to")])
def test_one_bad_step_is_skipped_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], factor: float, reason: str
) -> None:
    calls = []

    def sometimes_large(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        loss, mtp_loss = training_losses(*arguments, **options)
        return (loss * factor if len(calls) == 5 else loss), mtp_loss

    monkeypatch.setattr(loop, "training_losses", sometimes_large)
    run = Run(recipe([{"steps": 6, "sample_length": 48, "rows_per_pass": 48}]), write_corpus(tmp_path / "c"), tmp_path)
    run.train()
    skipped = [record["skipped"] for record in log(tmp_path) if "skipped" in record]
    assert skipped == [False] * 4 + [True, False]
    assert f"step 5: the {'loss or its gradient is' if factor == torch.inf else 'gradient'}" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["psm", "spm"])
def test_the_layout_that_the_model_names_is_the_one_it_learns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    seen: list[int] = []

    def watched(network: Any, batch: Any, **options: Any) -> Any:
        seen.extend(batch.tokens.tolist())
        return training_losses(network, batch, **options)

    monkeypatch.setattr(loop, "training_losses", watched)
    model = recipe().model | {"fim_layout": layout}
    stages = [{"steps": 1, "sample_length": 64, "rows_per_pass": 512}]
    run = Run(recipe(stages, model=model, fim_rate=1.0), write_corpus(tmp_path / "corpus"), tmp_path / "run")
    run.train()
    begin, hole = TOKENIZER.control(FIM_BEGIN), TOKENIZER.control(FIM_HOLE)
    after = {seen[place + 1] for place, token in enumerate(seen) if token == begin}
    assert (after == {hole}) == (layout == "spm")
    assert narrows.load(run.export()[0]).config.fim_layout == layout


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken"])
def test_a_damaged_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(NarrowsError, match=r"state\.pt is damaged .*; delete it to start"):
        Run(recipe(), write_corpus(tmp_path / "corpus"), tmp_path)


def test_the_state_of_another_recipe_is_refused_by_the_field_that_differs(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    short = [{"steps": 1, "sample_length": 48, "rows_per_pass": 48}]
    Run(recipe(short), corpus, tmp_path / "run").train()
    with pytest.raises(NarrowsError, match=r"state\.pt belongs to a run with another seed \(0, here 1\)"):
        Run(recipe(short, seed=1), corpus, tmp_path / "run")
    Run(recipe(short, evaluation_tokens=50), corpus, tmp_path / "run")  # decides what is reported, not what is computed


def test_a_full_disk_leaves_the_last_state_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = write_corpus(tmp_path / "corpus")
    run = Run(recipe(), corpus, tmp_path / "run")
    stop_behind(run, 3)
    before = (tmp_path / "run/state.pt").read_bytes()

    def full_disk(state: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(
        NarrowsError, match=r"state\.pt cannot be written .*No space left.*last checkpoint is untouched"
    ):
        run.train()
    assert (tmp_path / "run/state.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.unfinished"))
