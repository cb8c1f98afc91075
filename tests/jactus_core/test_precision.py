"""The same values with and without instructions for bfloat16."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from jactus_core.precision import fast_bfloat16

BATCH, M, N = 6, 24, 40
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: functional.linear(x, w),
    "linear with a bias": lambda x, w: functional.linear(x, w, w[:, 0]),
    "linear of a batch": lambda x, w: functional.linear(x.view(2, -1, N), w),
    "matrices": lambda x, w: x @ w.T,
    "a batch of matrices": lambda x, w: x.view(2, -1, N) @ w.view(2, -1, N).mT,
    "convolution": lambda x, w: functional.conv1d(x.view(2, -1, N), w.view(M, -1, 20)[:, :1].expand(-1, 3, -1)),
}
KINDS = {"training": nullcontext, "inference": torch.inference_mode}


@pytest.fixture(autouse=True)
def plain_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})


def some(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def model(dtype: torch.dtype) -> nn.Module:
    return nn.Linear(N, M).to(dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_rounded_once(name: str, kind: str) -> None:
    x, w = some(BATCH, N, seed=0), some(M, N, seed=1)
    exact = PRODUCTS[name](x.double(), w.double())
    with KINDS[kind](), fast_bfloat16(model(torch.bfloat16)):
        product = PRODUCTS[name](x, w)

    assert product.dtype == torch.bfloat16
    torch.testing.assert_close(product.double(), exact.bfloat16().double(), rtol=2**-8, atol=1e-5)


@pytest.mark.parametrize("name", PRODUCTS)
def test_so_are_its_gradients(name: str) -> None:
    x, w = some(BATCH, N, seed=0), some(M, N, seed=1)
    found: list[tuple[Tensor, ...]] = []
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (x, w)]
        with fast_bfloat16(model(dtype)):
            product = PRODUCTS[name](*inputs)
            found.append(torch.autograd.grad(product, inputs, some(*product.shape, seed=2).to(dtype)))

    for exact, gradient in zip(*found, strict=True):
        assert gradient.dtype == torch.bfloat16
        torch.testing.assert_close(gradient.double(), exact, rtol=2**-6, atol=2**-6 * float(exact.abs().max()))


def test_it_is_autocast_s_products_too_and_nothing_else() -> None:
    x, w = some(BATCH, N, seed=0), some(M, N, seed=1)
    with fast_bfloat16(model(torch.bfloat16)):
        with torch.autocast("cpu", torch.bfloat16):
            product = functional.linear(x.float(), w)
        whole = functional.linear(x.float(), w.float())

    assert product.dtype == torch.bfloat16
    assert torch.equal(whole, x.float() @ w.float().T)


@pytest.mark.parametrize(
    ("capability", "dtype", "device"),
    [
        ("avx512_bw", torch.bfloat16, "cpu"),
        ("bf16", torch.bfloat16, "cpu"),
        ("avx2", torch.float32, "cpu"),
        ("avx2", torch.bfloat16, "meta"),
    ],
)
def test_nothing_is_done_where_it_would_not_help(
    capability: str, dtype: torch.dtype, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(fast_bfloat16(model(torch.bfloat16)), nullcontext)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert isinstance(fast_bfloat16(model(dtype).to(device)), nullcontext)
