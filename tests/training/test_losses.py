"""Losses, load balancing, and what is measured."""

import math

import pytest
import torch
from torch.nn import functional as F

from narrows.model.moe import Router
from narrows.model.segments import Segment
from narrows.training.balance import LoadBalancer
from narrows.training.batches import pack
from narrows.training.evaluate import bits_per_byte
from narrows.training.losses import training_losses
from tests.training.corpora import TEXTS, TOKENIZER, network

TOKENS = [TOKENIZER.encode(text) for text in TEXTS]


def test_a_packed_batch_loses_what_its_samples_lose_alone() -> None:
    made = network()
    samples = [[0, *tokens][:90] for tokens in TOKENS]
    loss, mtp_loss = training_losses(made, pack(samples))
    alone = [training_losses(made, pack([sample])) for sample in samples]
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in alone), rel=1e-5)
    assert mtp_loss.item() == pytest.approx(sum(two.item() for _, two in alone), rel=1e-5)


def test_the_mtp_loss_is_that_of_the_token_after_the_next() -> None:
    made = network()
    batch = pack([[0, *TOKENS[0]]])
    streams = made(batch.tokens, batch.positions, batch.segments)
    ahead = made.mtp_forward(batch.targets, batch.positions, batch.segments, streams)
    expected = F.cross_entropy(made.mtp_logits(ahead)[:-1], batch.targets[1:], reduction="sum")
    assert training_losses(made, batch)[1].item() == pytest.approx(expected.item(), rel=1e-6)


def test_without_the_mtp_block_the_loss_is_the_same_and_the_block_has_no_gradient() -> None:
    made, batch = network(), pack([[0, *TOKENS[0]]])
    loss, mtp_loss = training_losses(made, batch, mtp=False)
    assert torch.equal(loss, training_losses(made, batch)[0])
    assert mtp_loss == 0
    (loss + mtp_loss).backward()
    without = {name for name, parameter in made.named_parameters() if parameter.grad is None}
    assert {name for name in without if ".indexer." not in name} == {
        name for name, _ in made.named_parameters() if name.startswith("mtp.")
    }


@pytest.mark.parametrize("rows", [1, 50, 1000])
def test_guessing_costs_the_logarithm_of_the_vocabulary(rows: int) -> None:
    made = network()
    torch.nn.init.zeros_(made.head.weight)
    bytes_ = sum(len(text.encode()) for text in TEXTS)
    expected = sum(map(len, TOKENS)) * math.log2(TOKENIZER.vocab_size) / bytes_
    assert bits_per_byte(made, TOKENIZER, TOKENS, rows) == pytest.approx(expected, rel=1e-6)


def test_measuring_leaves_the_network_in_training() -> None:
    made = network().train()
    bits_per_byte(made, TOKENIZER, TOKENS, 256)
    assert made.training


def test_biases_follow_the_load_of_all_passes() -> None:
    made = network().train()
    balancer = LoadBalancer(made, speed=0.25)
    counts = dict.fromkeys(balancer.routers, 0)
    for tokens in TOKENS[:2]:
        batch = pack([[0, *tokens]])
        balancer.begin(batch.segments, batch.tokens.device)
        training_losses(made, batch)
    loads = balancer.update()
    balancer.close()
    assert set(loads) == set(counts)
    assert len(loads) == sum(isinstance(module, Router) and not module.hashed for module in made.modules()) > 0
    for name, load in loads.items():
        assert sum(load) == 2 * sum(map(len, TOKENS[:2]))  # two experts a token
        mean = sum(load) / len(load)
        expected = [0.25 * ((mean > count) - (mean < count)) for count in load]
        assert balancer.routers[name].bias.tolist() == expected


def test_the_balance_loss_is_one_where_all_is_even_and_grows_with_the_imbalance() -> None:
    made = network().train()
    balancer = LoadBalancer(made, speed=0.0)
    router = next(iter(balancer.routers.values()))
    experts = router.weight.shape[0]
    with torch.no_grad():
        router.weight.copy_(10 * torch.eye(experts, router.weight.shape[1]))

    def loss_of(*directions: int) -> float:
        """Of two equal sequences whose tokens point at these experts and the next ones."""
        balancer.begin([Segment(len(directions))] * 2, torch.device("cpu"))
        x = torch.zeros(2 * len(directions), router.weight.shape[1])
        for row, direction in enumerate([*directions, *directions]):
            x[row, direction % experts] = x[row, (direction + 1) % experts] = 1
        router(x, torch.zeros(len(x), dtype=torch.int64))
        return balancer.loss().item()

    even, uneven = loss_of(*range(experts)), loss_of(*[0] * experts)
    assert even == pytest.approx(1.0, rel=1e-5)
    assert uneven > 1.5
    balancer.close()


def test_the_balance_loss_has_a_gradient_in_the_router_and_none_is_left_behind_by_a_closed_balancer() -> None:
    made = network().train()
    balancer = LoadBalancer(made, speed=0.1)
    batch = pack([[0, *TOKENS[0]]])
    balancer.begin(batch.segments, batch.tokens.device)
    training_losses(made, batch)
    loss = balancer.loss()
    loss.backward()
    assert all(router.weight.grad is not None and router.weight.grad.any() for router in balancer.routers.values())
    balancer.close()
    balancer.begin(batch.segments, batch.tokens.device)
    training_losses(made, batch)
    assert balancer.loss() == 0
