"""Sinkhorn's GPU kernels: the reference's matrices and gradients, whatever the number of rows and steps."""

from __future__ import annotations

import pytest
import torch

from narrows.ops import hyper

if not torch.cuda.is_available():
    pytest.skip("this machine has no GPU", allow_module_level=True)
kernels = pytest.importorskip("narrows.ops.sinkhorn_triton")


@pytest.mark.parametrize("rows", [1, 63, 64, 65, 5000])
@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_matrices_and_gradients_are_the_references(rows: int, iterations: int) -> None:
    random = torch.Generator("cuda").manual_seed(rows)
    logits, upper = (3 * torch.randn(rows, 4, 4, device="cuda", generator=random) for _ in range(2))
    exact = logits.double().requires_grad_()
    wanted = hyper.sinkhorn(exact, iterations=iterations, eps=1e-6)
    wanted.backward(upper.double())
    got = kernels.sinkhorn(logits, iterations, 1e-6)
    gradient = kernels.sinkhorn_gradient(logits, iterations, 1e-6, upper)
    torch.testing.assert_close(got.double(), wanted.detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(gradient.double(), exact.grad, rtol=0, atol=1e-5)
