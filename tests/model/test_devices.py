"""The network on every device there is: the CPU's logits and gradients, whole and token by token."""

from __future__ import annotations

import pytest
import torch

from narrows.model.history import ContiguousHistory
from narrows.model.network import Network
from narrows.model.presets import TINY
from narrows.model.segments import Segment, positions_of
from tests.parity.configurations import randomised, relative_error

AVAILABLE = {"cpu": lambda: True, "cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}


@pytest.fixture(params=AVAILABLE)
def device(request: pytest.FixtureRequest) -> torch.device:
    if not AVAILABLE[request.param]():
        pytest.skip(f"this machine has no {request.param}")
    return torch.device(request.param)


def test_a_pass_and_its_gradients_and_decoding(device: torch.device) -> None:
    segments = [Segment(70), Segment(1), Segment(9)]
    tokens = torch.randint(TINY.vocab_size, (80,), generator=torch.Generator().manual_seed(4))
    exact = randomised(Network(TINY, dtype=torch.float64), torch.Generator().manual_seed(3))
    network = Network(TINY, device=device)
    network.load_state_dict(exact.state_dict())
    results = []
    for each in (exact, network):
        place = each.device
        logits = each.logits(each(tokens.to(place), positions_of(segments, place), segments))
        logits.square().mean().backward()
        results.append((logits.detach(), [parameter.grad for parameter in each.parameters()]))
    (wanted, gradients), (got, ours) = results
    assert relative_error(got.cpu(), wanted) < 1e-4
    for one, other in zip(ours, gradients, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None and other.any():
            assert relative_error(one.cpu(), other) < 1e-2

    with torch.no_grad():
        history = ContiguousHistory(TINY, device=device)
        rows = []
        for part in tokens[:70].to(device).split([40] + [1] * 30):
            segment = history.segment(len(part))
            rows.append(network.logits(network(part, positions_of([segment], device), [segment], history)))
    assert relative_error(torch.cat(rows).cpu(), wanted[:70]) < 1e-4
