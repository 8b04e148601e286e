"""Losses, load balancing and straight-through rounding."""

import math

import pytest
import torch
from torch.nn import functional as F

from narrows.model.moe import Experts, MoE
from narrows.ops.quantize import dequantize_mxfp4, quantize_mxfp4
from narrows.training.balance import LoadBalancer
from narrows.training.batches import Documents, pack
from narrows.training.losses import bits_per_byte, training_losses
from narrows.training.straight_through import mxfp4_experts
from tests.training.corpora import DOCUMENTS, TEXTS, TOKENIZER, network


def test_a_packed_batch_loses_what_its_samples_lose_alone() -> None:
    made = network()
    samples = [[0, *TOKENIZER.encode(text)][:90] for text in TEXTS if text]
    loss, mtp_loss = training_losses(made, pack(samples))
    alone = [training_losses(made, pack([sample])) for sample in samples]
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in alone), rel=1e-5)
    assert mtp_loss.item() == pytest.approx(sum(two.item() for _, two in alone), rel=1e-5)


def test_the_mtp_loss_is_that_of_the_token_after_the_next() -> None:
    made = network()
    batch = pack([[0, *TOKENIZER.encode(TEXTS[0])]])
    streams = made(batch.tokens, batch.positions, batch.segments)
    ahead = made.mtp_forward(batch.targets, batch.positions, batch.segments, streams)
    expected = F.cross_entropy(made.mtp_logits(ahead)[:-1], batch.targets[1:], reduction="sum")
    assert training_losses(made, batch)[1].item() == pytest.approx(expected.item(), rel=1e-6)


def test_guessing_costs_the_logarithm_of_the_vocabulary() -> None:
    made = network()
    torch.nn.init.zeros_(made.head.weight)
    documents = Documents(TOKENIZER, TEXTS)
    tokens = sum(len(TOKENIZER.encode(text)) for text in TEXTS)
    expected = tokens * math.log2(TOKENIZER.vocab_size) / sum(len(text.encode()) for text in TEXTS)
    for length, rows in ((7, 50), (64, 64), (1000, 1000)):
        assert bits_per_byte(made, documents, length, rows) == pytest.approx(expected, rel=1e-6)


def test_measuring_leaves_the_network_in_training() -> None:
    made = network().train()
    bits_per_byte(made, DOCUMENTS, 64, 256)
    assert made.training


def test_biases_follow_the_load() -> None:
    made = network().train()
    layers = [module for module in made.modules() if isinstance(module, MoE) and not module.gate.hashed]
    balancer = LoadBalancer(made, speed=0.25)
    for loads in ([4, 0, 1, 3], [4, 0, 1, 3]):
        for layer in layers:
            layer.last_load = torch.tensor(loads)
        balancer.count()
    assert balancer.update() == pytest.approx(2.0)
    for layer in layers:
        assert layer.gate.bias.tolist() == [-0.25, 0.25, 0.25, -0.25]


def test_experts_are_rounded_inside_and_their_old_selves_behind() -> None:
    made = network()
    (experts, *_) = [module for module in made.modules() if isinstance(module, Experts)]
    before = {name: weight.clone() for name, weight in made.state_dict().items()}
    expected = dequantize_mxfp4(*quantize_mxfp4(experts.w2[1].detach()))
    with mxfp4_experts(made):
        assert torch.equal(experts.w2[1], expected)
        loss, _ = training_losses(made, pack([[0, *TOKENIZER.encode(TEXTS[0])]]))
        loss.backward()
    assert experts.w2.grad is not None
    assert experts.w2.grad.abs().sum() > 0
    assert all(torch.equal(weight, before[name]) for name, weight in made.state_dict().items())
