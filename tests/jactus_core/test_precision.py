"""The same values with and without instructions for bfloat16."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

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


class Computed(TorchDispatchMode):
    """The types in which the CPU is asked for products and for attention."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's class has no types
        self.dtypes: set[torch.dtype] = set()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket in {torch.ops.aten.mm, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu}:
            self.dtypes.add(args[0].dtype)
        return func(*args, **(kwargs or {}))


def attended(query: Tensor, key: Tensor) -> Tensor:
    return functional.scaled_dot_product_attention(query, key, key, (key @ query.mT).mean(1, True).mT, 0.0, scale=0.5)


def computed(action: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor, of: nn.Module) -> set[torch.dtype]:
    with Computed() as seen, fast_bfloat16(of):
        action(x, y)
    return seen.dtypes


@pytest.mark.parametrize("capability", ["avx2", "bf16"])
def test_attention_is_computed_in_float32_on_any_cpu(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    query, key = some(2, 3, 5, 8, seed=0), some(2, 3, 5, 8, seed=1)
    given = some(2, 3, 5, 8, seed=2)
    found: list[tuple[Tensor, ...]] = []
    for dtype in (torch.float64, torch.bfloat16):
        inputs = [tensor.to(dtype, copy=True).requires_grad_() for tensor in (query, key)]
        with fast_bfloat16(model(dtype)), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            answer = attended(*inputs)
            found.append((answer.detach(), *torch.autograd.grad(answer, inputs, given.to(dtype))))

    for exact, value in zip(*found, strict=True):
        assert value.dtype == torch.bfloat16
        torch.testing.assert_close(value.double(), exact, rtol=2**-6, atol=2**-6 * float(exact.abs().max()))
    assert computed(attended, query, key, model(torch.bfloat16)) == {torch.float32}
    assert computed(attended, query.float(), key.float(), model(torch.bfloat16)) == {torch.float32}


def test_attention_that_runs_again_in_the_backward_pass_does_so_in_float32() -> None:
    found: list[Tensor] = []
    for again in (False, True):
        query, key = (some(2, 3, 5, 8, seed=seed).requires_grad_() for seed in (0, 1))
        with fast_bfloat16(model(torch.bfloat16)):
            answer = checkpoint(attended, query, key, use_reentrant=False) if again else attended(query, key)
            answer.sum().backward()
        assert query.grad is not None
        found.append(query.grad)

    assert torch.equal(*found)


def test_attention_is_torch_s_own_again_behind_it() -> None:
    plain = functional.scaled_dot_product_attention
    with suppress(KeyError), fast_bfloat16(model(torch.bfloat16)):
        assert functional.scaled_dot_product_attention is not plain
        raise KeyError
    assert functional.scaled_dot_product_attention is plain


@pytest.mark.parametrize("capability", ["avx512_bw", "bf16"])
def test_products_are_left_to_the_instructions(capability: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = some(BATCH, N, seed=0), some(M, N, seed=1)
    assert computed(PRODUCTS["matrices"], x, w, model(torch.bfloat16)) == {torch.float32}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {capability: True})
    assert computed(PRODUCTS["matrices"], x, w, model(torch.bfloat16)) == {torch.bfloat16}


@pytest.mark.parametrize(("dtype", "device"), [(torch.float32, "cpu"), (torch.bfloat16, "meta")])
def test_other_models_are_left_alone(dtype: torch.dtype, device: str) -> None:
    of = model(dtype).to(device)
    x, w = some(BATCH, N, seed=0), some(M, N, seed=1)
    assert computed(PRODUCTS["matrices"], x, w, of) == {torch.bfloat16}
    assert computed(attended, some(2, 3, 5, 8, seed=0), some(2, 3, 5, 8, seed=1), of) == {torch.bfloat16}
