"""bfloat16 on CPUs without instructions for it: the same memory and rounding, by way of float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

BFLOAT16 = ("avx512_bw", "bf16")
"""Capabilities of a CPU, with one of which torch has fast products of bfloat16."""
aten = torch.ops.aten
PRODUCTS = {
    *(aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward),
    *(aten.linear, aten.matmul, aten.conv1d, aten.conv2d),  # which inference mode does not take apart
}


def fast_bfloat16(model: nn.Module) -> AbstractContextManager[object]:
    """Where a model with bfloat16 weights is run, forward or backward."""
    if any(torch.cpu.get_capabilities().get(name) for name in BFLOAT16):
        return nullcontext()
    if not any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters()):
        return nullcontext()
    return _InFloat32()  # type: ignore[no-untyped-call]  # torch's class has no types


class _InFloat32(TorchDispatchMode):
    """Products of bfloat16 tensors are summed in float32 and rounded once, which is what the instructions do."""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket not in PRODUCTS or args[0].dtype != torch.bfloat16:
            return func(*args, **(kwargs or {}))
        product = func(*tree_map_only(torch.Tensor, torch.Tensor.float, args), **(kwargs or {}))
        return tree_map_only(torch.Tensor, torch.Tensor.bfloat16, product)
