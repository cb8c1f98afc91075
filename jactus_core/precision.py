"""bfloat16 on CPUs: what is slow in it there is computed in float32 and rounded once, in the same memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
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
    with _AttentionInFloat32(), nullcontext() if has_products else _InFloat32():  # type: ignore[no-untyped-call]
        yield


class _AttentionInFloat32(TorchFunctionMode):
    """Attention to bfloat16 tensors without dropout: its backward pass is several times faster in float32."""

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        is_attention = func is functional.scaled_dot_product_attention and args[0].dtype == torch.bfloat16
        if not is_attention or kwargs.get("dropout_p"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            args, kwargs = tree_map_only(Tensor, _widened, (args, kwargs))
            return func(*args, **kwargs).bfloat16()


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
