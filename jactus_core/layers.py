"""The layers a compression touches: which ones, and what stands in for them while their cores are trained."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from jactus_core.errors import UnsupportedModel
from jactus_core.factorization import Factorization
from jactus_core.modeling_jactus import LowRankLinear


def compressible_layers(model: PreTrainedModel, head: frozenset[str]) -> dict[str, nn.Linear]:
    """Every `nn.Linear` of the pretrained body by name; embeddings and the task head are left alone.

    `head` names the parameters of the task head. Raises UnsupportedModel when there is no such layer, or when one
    shares its weight with another module.
    """
    prefix = model.base_model_prefix + "."
    found = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and name.startswith(prefix) and f"{name}.weight" not in head
    }
    if not found:
        raise UnsupportedModel(f"{type(model).__name__} has no linear layer in its body to compress.", "model")
    owners: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = owners.setdefault(id(parameter), name)
        if other != name and {other.removesuffix(".weight"), name.removesuffix(".weight")} & found.keys():
            raise UnsupportedModel(f"'{other}' and '{name}' share one weight; this is not supported.", "model")
    return found


def train_only(model: nn.Module, names: frozenset[str]) -> None:
    """Freeze every parameter but the named ones."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)


class CoreLinear(nn.Module):
    """A compressed layer in training: y = (base + up · core · down) x + bias, with the core alone trained.

    `up` (m, r) and `down` (r, n) are whitened directions as they come from the factorization. In a low-rank layer there
    is no `base` and the core starts at diag(S_r), rescaled to mean 1. In a layer that stays dense `base` is the
    frozen W (m, n) and the core starts at zero.
    """

    base: Tensor | None
    up: Tensor
    down: Tensor
    bias: Tensor | None

    def __init__(self, dense: nn.Linear, factors: Factorization, rank: int, keep_dense: bool) -> None:
        super().__init__()
        singular = factors.singular[:rank].float()
        scale = float(singular.mean()) or 1.0
        start = torch.zeros(rank, rank) if keep_dense else torch.diag(singular / scale)
        device = dense.weight.device
        self.core = nn.Parameter(start.to(device))
        self.register_buffer("up", (factors.up[:, :rank] * scale).to(device))
        self.register_buffer("down", factors.down[:rank].to(device))
        self.register_buffer("base", dense.weight.detach() if keep_dense else None)
        self.register_buffer("bias", None if dense.bias is None else dense.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        if self.base is not None:
            return functional.linear(x, self._adapted(self.base), self.bias)
        return functional.linear(functional.linear(functional.linear(x, self.down), self.core), self.up, self.bias)

    def _adapted(self, base: Tensor) -> Tensor:
        """The weight (m, n) of a layer that stays dense; cheaper than a second path for more tokens than ranks."""
        return base + self.up @ self.core @ self.down

    @torch.no_grad()
    def folded(self) -> nn.Linear | LowRankLinear:
        """The layer to deploy: the core multiplied into the thinner neighbour, or into W for a dense one."""
        (m, rank), n = self.up.shape, self.down.shape[1]
        if self.base is not None:
            dense = nn.Linear(n, m, bias=self.bias is not None, device=self.up.device)
            dense.weight.copy_(self._adapted(self.base))
            _copy_bias(dense, self.bias)
            return dense
        layer = LowRankLinear(n, m, rank, self.bias is not None).to(self.up.device)
        layer.up.weight.copy_(self.up @ self.core if m <= n else self.up)
        layer.down.weight.copy_(self.down if m <= n else self.core @ self.down)
        _copy_bias(layer.up, self.bias)
        return layer


def _copy_bias(layer: nn.Linear, bias: Tensor | None) -> None:
    if bias is not None:
        layer.bias.copy_(bias)


def install_cores(model: nn.Module, factors: Mapping[str, Factorization], ranks: Mapping[str, int | None]) -> None:
    """Replace every layer named in `ranks` by a CoreLinear; None keeps the layer dense."""
    for name, rank in ranks.items():
        dense: Any = model.get_submodule(name)
        trained = rank if rank is not None else min(factors[name].rank, dense_core_rank(*dense.weight.shape))
        model.set_submodule(name, CoreLinear(dense, factors[name], trained, keep_dense=rank is None))


def dense_core_rank(m: int, n: int) -> int:
    """Size of the core trained in a layer that stays dense: its break-even rank."""
    return max(m * n // (m + n), 1)


def fold_cores(model: nn.Module) -> None:
    """Replace every CoreLinear by the layer to deploy; the logits do not change."""
    for name, module in list(model.named_modules()):
        if isinstance(module, CoreLinear):
            model.set_submodule(name, module.folded())
