"""The loop: it learns, it can be interrupted without a trace, and it stops when numbers are no longer finite."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from narrows.errors import NarrowsError
from narrows.training import loop
from narrows.training.journal import Journal
from narrows.training.loop import Settings, train
from narrows.training.losses import training_losses
from tests.training.corpora import DOCUMENTS, network

SETTINGS = Settings(
    steps=6,
    passes_per_step=2,
    rows_per_pass=64,
    sample_length=64,
    learning_rate=1e-2,
    final_learning_rate=1e-3,
    warm_up_steps=2,
    cosine_from=0.5,
    rounded_from=0.7,
    seconds_between_checkpoints=0,
)


def log(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "log.jsonl").read_text().splitlines()]


def test_it_learns(tmp_path: Path) -> None:
    settings = replace(SETTINGS, steps=15)
    measured = train(network(), DOCUMENTS, DOCUMENTS, settings, tmp_path)
    records = log(tmp_path)
    losses = [record["loss"] for record in records if "loss" in record]
    assert len(losses) == 15
    assert losses[-1] < 0.8 * losses[0]
    assert records[-1]["held_out_bits_per_byte"] == pytest.approx(measured, abs=1e-5)


def test_an_interrupted_run_ends_as_the_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = network()
    train(whole, DOCUMENTS, DOCUMENTS, SETTINGS, tmp_path / "whole")

    def fail_after_three(journal: Journal, step: int, text: str) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "progress", fail_after_three)
        with pytest.raises(KeyboardInterrupt):
            train(network(), DOCUMENTS, DOCUMENTS, SETTINGS, tmp_path / "parts")
    resumed = network(seed=1)  # all of it is replaced
    train(resumed, DOCUMENTS, DOCUMENTS, SETTINGS, tmp_path / "parts")

    its = resumed.state_dict()
    assert all(torch.equal(weight, its[name]) for name, weight in whole.state_dict().items())
    ours, theirs = log(tmp_path / "whole"), log(tmp_path / "parts")
    assert [record["step"] for record in theirs] == [0, 1, 2, 3, 4, 5, 6]
    assert [record.get("loss") for record in theirs] == [record.get("loss") for record in ours]


def test_a_loss_that_is_not_finite_changes_nothing_and_ends_the_run(tmp_path: Path) -> None:
    made = network()
    with torch.no_grad():
        made.norm.weight[0] = torch.inf
    before = {name: weight.clone() for name, weight in made.named_parameters()}
    with pytest.raises(NarrowsError, match=r"not finite in 10 steps in a row, up to step 10; delete .* lower learning"):
        train(made, DOCUMENTS, DOCUMENTS, replace(SETTINGS, steps=50), tmp_path)
    assert all(torch.equal(weight, before[name]) for name, weight in made.named_parameters())
    assert [record["skipped"] for record in log(tmp_path)] == [1.0] * 10


def test_one_bad_step_is_skipped_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = training_losses, []

    def sometimes_infinite(*arguments: Any) -> Any:
        calls.append(1)
        loss, mtp_loss = real(*arguments)
        return (loss * torch.inf if len(calls) == 5 else loss), mtp_loss

    monkeypatch.setattr(loop, "training_losses", sometimes_infinite)
    train(network(), DOCUMENTS, DOCUMENTS, SETTINGS, tmp_path)
    assert [record["skipped"] for record in log(tmp_path) if "skipped" in record] == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 broken"])
def test_a_damaged_state_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "state.pt").write_bytes(content)
    with pytest.raises(NarrowsError, match=r"state\.pt is damaged or belongs to a run with other settings; delete it"):
        train(network(), DOCUMENTS, DOCUMENTS, SETTINGS, tmp_path)


def test_the_state_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(state: object, file: Path) -> None:
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(NarrowsError, match=r"state\.pt cannot be written .*No space left"):
        train(network(), DOCUMENTS, DOCUMENTS, SETTINGS, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["log.jsonl"]


def test_the_learning_rate_warms_up_stays_and_falls_to_its_end() -> None:
    settings = replace(SETTINGS, steps=100, warm_up_steps=10, cosine_from=0.5)
    rates = [settings.learning_rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(1e-3)
    assert rates[9:50] == [pytest.approx(1e-2)] * 41
    assert all(later < earlier for earlier, later in pairwise(rates[49:]))
    assert rates[-1] == pytest.approx(1e-3)
