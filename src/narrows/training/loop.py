"""The training loop: a recipe and a corpus in, a trained network out; interrupted, it goes on where it was."""

from __future__ import annotations

import json
import math
import os
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from narrows.checkpoints.save import save_network
from narrows.corpus.shards import Corpus
from narrows.errors import NarrowsError
from narrows.model.indexer import Indexer
from narrows.model.network import Network
from narrows.training.balance import LoadBalancer
from narrows.training.batches import Batch, TrainingBatches
from narrows.training.evaluate import bits_per_byte
from narrows.training.index_loss import IndexerTeacher
from narrows.training.journal import Journal
from narrows.training.losses import training_losses
from narrows.training.masters import Masters
from narrows.training.optimizers import make_optimizers, set_learning_rate
from narrows.training.plots import write_plots
from narrows.training.products import fast_products
from narrows.training.recipe import Recipe, Stage
from narrows.training.samples import TokenStream
from narrows.training.schedule import learning_rate_at, mtp_weight_at
from narrows.training.state import load_state, save_state

_MOST_SKIPPED_IN_A_ROW = 10
_NORM_MEMORY = 0.95  # of the running mean that tells a spike
_BUSY_CORES = 2  # that drive an accelerator; the others make samples

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


class Run:
    """One training run in `directory`, which receives

    state.pt (all that a restart needs), log.jsonl (a line per step), loss.png, experts.png, and at the end `model`
    (as it ships) and `master` (BF16). Where there is a state.pt, the run goes on from it and computes what it would
    have computed uninterrupted.
    """

    def __init__(self, recipe: Recipe, corpus: Corpus, directory: Path, device: str = "cpu") -> None:
        """Read the state, if there is one. NarrowsError for a damaged one, or one of another recipe or corpus."""
        self.recipe, self.corpus, self.directory = recipe, corpus, directory
        self.device = torch.device(device)
        directory.mkdir(parents=True, exist_ok=True)
        config = recipe.config(corpus.vocab_size)
        corpus.tokenizer.check_fits(config, "the recipe's model")
        torch.manual_seed(recipe.seed)
        self.network = Network(config, dtype=_DTYPES[recipe.dtype], device=self.device)
        self.network.initialise()
        self.masters = Masters(self.network)
        self.optimizers = make_optimizers(
            self.masters.parameters, config, recipe.optimiser.learning_rate, recipe.optimiser.weight_decay
        )
        self.identity = {**_flat(recipe.model_dump(mode="json", exclude=_FREE)), "corpus": corpus.tokenizer_sha256}
        self.progress = load_state(self._state, self.network, self.masters, self.optimizers, self.identity)

    @property
    def _state(self) -> Path:
        return self.directory / "state.pt"

    def train(self, until: int | None = None) -> float:
        """Take all steps that are left, or those up to `until`. -> bits per byte on held-out text, as it would ship.

        A run that stopped at `until` goes on from there when it is started again, as from any checkpoint. NarrowsError
        when the loss stays non-finite, or when the state cannot be written.
        """
        recipe, progress = self.recipe, self.progress
        stream = TokenStream.of(self.corpus, "train")
        held_out = _held_out(self.corpus, recipe.evaluation_tokens, recipe.trained_context)
        batches: TrainingBatches | None = None
        current: int | None = None
        last = recipe.steps if until is None else min(until, recipe.steps)
        with (
            Journal(self.directory / "log.jsonl", last, progress.step) as journal,
            closing(LoadBalancer(self.network, recipe.loss.bias_speed)) as balancer,
            closing(IndexerTeacher(self.network)) as teacher,
        ):
            saved_at = time.monotonic()
            while progress.step < last:
                number, stage = recipe.stage_at(progress.step)
                if batches is None or number != current:
                    if batches is not None:
                        batches.close()
                    batches = self._batches(stream, number, stage)
                    if current is None:
                        batches.seek(progress.epoch, progress.position)
                    else:
                        journal.note(f"stage {number + 1} of {len(recipe.stages)}: {_describe(stage)}")
                    current = number
                    self._enter(stage)
                values = self._step(stage, batches, balancer, teacher)
                progress.epoch, progress.position = batches.epoch, batches.position
                journal.record(progress.step, **values)
                if values["skipped"]:
                    journal.note(f"step {progress.step + 1}: {_reason(values)}; the step is skipped.")
                if progress.skipped_in_a_row == _MOST_SKIPPED_IN_A_ROW:
                    raise NarrowsError(
                        f"{_MOST_SKIPPED_IN_A_ROW} steps in a row were skipped, up to step {progress.step + 1}: "
                        f"{_reason(values)}; start again from {self._state} with a lower learning rate."
                    )
                journal.progress(
                    progress.step, f"loss {values['loss']:.3f}  {values['tokens_per_second']:,.0f} tokens/s"
                )
                progress.step += 1
                ends = progress.step == recipe.steps or recipe.stage_at(progress.step)[0] != number
                if ends:  # the next stage's batches begin at their beginning, and its gradients may be of another size
                    progress.epoch = progress.position = 0
                    progress.mean_norm = 0.0
                if progress.step % recipe.steps_between_evaluations == 0 and progress.step < last:
                    measured = self._evaluate(held_out)
                    journal.record(progress.step - 1, held_out_bits_per_byte=measured)
                    journal.note(f"step {progress.step}: {measured:.4f} bits per byte on held-out text")
                    write_plots(self.directory)
                if ends or progress.step == last or time.monotonic() - saved_at > recipe.seconds_between_checkpoints:
                    self._save()
                    saved_at = time.monotonic()
            if batches is not None:
                batches.close()
            measured = self._evaluate(held_out)
            journal.record(progress.step, held_out_bits_per_byte=measured)  # taken back by the next start
            trained = "trained" if progress.step == recipe.steps else f"stopped behind step {progress.step}"
            journal.note(f"{trained}: {measured:.4f} bits per byte on held-out text, as it ships")
        write_plots(self.directory)
        return measured

    def export(self) -> tuple[Path, Path]:
        """Write the trained network as it ships and as BF16, unless that was done. -> the two folders."""
        self.masters.give_weights()
        folders = self.directory / "model", self.directory / "master"
        for folder, precision in zip(folders, (self.recipe.shipped().value, "bf16"), strict=True):
            if not folder.exists():
                save_network(self.network, folder, precision=precision, companions=self.corpus.directory)
        return folders

    def _batches(self, stream: TokenStream, number: int, stage: Stage) -> TrainingBatches:
        return TrainingBatches(
            stream,
            length=stage.sample_length,
            rows=stage.rows_per_pass,
            fim_rate=self.recipe.fim_rate,
            fim_layout=self.network.config.fim_layout,
            seeds=(self.recipe.seed, number),
            processes=0 if self.device.type == "cpu" else max(1, (os.cpu_count() or 1) - _BUSY_CORES),
        )

    def _enter(self, stage: Stage) -> None:
        """What the network must know of the stage that begins."""
        for name, module in self.network.named_modules():
            if isinstance(module, Indexer):
                module.dense = stage.attention == "dense"
            for leaf, parameter in module.named_parameters(prefix=name, recurse=False):
                parameter.requires_grad_(stage.train == "all" or ".indexer." in leaf)

    def _step(
        self, stage: Stage, batches: TrainingBatches, balancer: LoadBalancer, teacher: IndexerTeacher
    ) -> dict[str, Any]:
        """One step. -> what the journal keeps of it."""
        recipe, progress = self.recipe, self.progress
        started = time.monotonic()
        rate = learning_rate_at(recipe, progress.step)
        set_learning_rate(self.optimizers, rate)
        self.network.train()
        self.masters.give_weights(recipe.shipped() if stage.rounded else None)
        passes = [batches.next() for _ in range(stage.passes_per_step)]
        rows = sum(batch.rows for batch in passes)
        teacher.active = stage.attention == "sparse" or stage.train == "indexers"
        values = torch.zeros(4, dtype=torch.float64)
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        with fast_products(recipe.fast_products):
            for batch in passes:
                values += self._backward(batch.to(self.device), batch.rows / rows, stage, balancer, teacher)
        norm = float(nn.utils.clip_grad_norm_(self.masters.parameters.values(), recipe.optimiser.largest_gradient_norm))
        spike = 0 < progress.mean_norm * recipe.optimiser.spike < norm
        skipped = spike or not math.isfinite(float(values.sum()) + norm)
        loads: dict[str, list[int]] = {}
        if skipped:
            progress.skipped_in_a_row += 1
            balancer.forget()
        else:
            progress.skipped_in_a_row = 0
            progress.mean_norm += (1 - _NORM_MEMORY if progress.mean_norm else 1) * (norm - progress.mean_norm)
            for optimizer in self.optimizers:
                optimizer.step()
            loads = balancer.update()
        seconds = time.monotonic() - started
        loss, mtp_loss, balance, index_loss = values.tolist()
        return {
            "loss": loss,
            "mtp_loss": mtp_loss,
            "balance_loss": balance,
            "index_loss": index_loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "imbalance": max(
                (max(load) * len(load) / sum(load) for load in loads.values() if any(load)), default=math.nan
            ),
            "loads": list(loads.values()),
            "rows": rows,
            "tokens_per_second": rows / seconds,
            "skipped": skipped,
        }

    def _backward(
        self, batch: Batch, share: float, stage: Stage, balancer: LoadBalancer, teacher: IndexerTeacher
    ) -> Tensor:
        """Add a pass's gradients to the masters'. -> its share of the losses: next token, MTP, balance, index."""
        weights = self.recipe.loss
        balancer.begin(batch.segments, self.device)
        loss, mtp_loss = (total / batch.rows for total in training_losses(self.network, batch, mtp=stage.mtp))
        balance, index_loss = balancer.loss(), teacher.loss() / batch.rows
        total = weights.index * index_loss
        if stage.train == "all":
            total = total + loss + mtp_weight_at(self.recipe, self.progress.step) * mtp_loss + weights.balance * balance
        (total * share).backward()
        self.masters.take_gradients()
        parts = [part.detach().cpu().double() for part in (loss, mtp_loss, balance, index_loss)]
        return share * torch.stack(parts)

    def _evaluate(self, held_out: list[list[int]]) -> float:
        self.masters.give_weights(self.recipe.shipped())
        rows = max(stage.rows_per_pass for stage in self.recipe.stages)
        return bits_per_byte(self.network, self.corpus.tokenizer, held_out, rows)

    def _save(self) -> None:
        save_state(self._state, self.network, self.masters, self.optimizers, self.progress, self.identity)


# What may change between two starts of a run: it decides what is reported and when, not what is computed.
_FREE = {"corpus", "evaluation_tokens", "steps_between_evaluations", "seconds_between_checkpoints"}


def _flat(fields: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested fields by their dotted names, so that an error can name the one that differs; lists as JSON."""
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = json.dumps(value) if isinstance(value, list) else value
    return flat


def _held_out(corpus: Corpus, tokens: int, longest: int) -> list[list[int]]:
    """Beginnings of held-out files, drawn once for ever, of `longest` tokens at most, together about `tokens`."""
    texts: list[list[int]] = []
    for index in np.random.default_rng(0).permutation(corpus.documents("held_out")).tolist():
        if sum(map(len, texts)) >= tokens:
            break
        texts.append(corpus.tokens("held_out", index)[:longest].tolist())
    return texts


def _describe(stage: Stage) -> str:
    kind = "the indexers alone" if stage.train == "indexers" else "all"
    rounded = ", rounded as shipped" if stage.rounded else ""
    kind += "" if stage.mtp else " but MTP"
    return f"{stage.steps} steps of {kind}, samples of {stage.sample_length}, {stage.attention} attention{rounded}"


def _reason(values: dict[str, Any]) -> str:
    if math.isfinite(values["loss"] + values["gradient_norm"]):
        return f"the gradient's norm jumped to {values['gradient_norm']:.1f}"
    return "the loss or its gradient is not finite"
