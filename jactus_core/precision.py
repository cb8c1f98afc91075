"""bfloat16 on CPUs: what is slow in it there is computed in float32 and rounded once, in the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

BFLOAT16 = ("avx512_bw", "bf16")
"""Capabilities of a CPU, with one of which torch has fast products of bfloat16."""
aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward),
    *(aten.linear, aten.matmul, aten.conv1d, aten.conv2d),  # which inference mode does not take apart
}


@contextmanager
def fast_bfloat16(model: nn.Module) -> Iterator[None]:
    """Where a model with bfloat16 weights is run, forward or backward."""
    if not any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters()):
        yield
        return
    has_products = any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16)
    with _attention_in_float32(), nullcontext() if has_products else _InFloat32():  # type: ignore[no-untyped-call]
        yield


@contextmanager
def _attention_in_float32() -> Iterator[None]:
    """Attention to bfloat16 tensors without dropout, whose backward pass is several times faster in float32.

    For the whole process, as gradient checkpointing runs it again from within the backward pass.
    """
    plain = functional.scaled_dot_product_attention

    def widened(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        *args: Any,
        **kwargs: Any,
    ) -> Tensor:
        if query.dtype != torch.bfloat16 or query.device.type != "cpu" or dropout_p:
            return plain(query, key, value, attn_mask, dropout_p, *args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            query, key, value, attn_mask = tree_map_only(Tensor, _widened, (query, key, value, attn_mask))
            return plain(query, key, value, attn_mask, dropout_p, *args, **kwargs).bfloat16()

    functional.scaled_dot_product_attention = widened
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = plain


def _widened(tensor: Tensor) -> Tensor:
    """In float32 if it was bfloat16; a mask may hold booleans."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


class _InFloat32(TorchDispatchMode):
    """Products of bfloat16 tensors are summed in float32 and rounded once, which is what the instructions do."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        product = func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, product)
