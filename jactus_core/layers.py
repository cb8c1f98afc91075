"""The layers a compression touches: which ones, and what stands in for them while their cores are trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, set_seed
from transformers.pytorch_utils import Conv1D

from jactus_core.allocation import low_rank_parameters
from jactus_core.errors import UnsupportedModel
from jactus_core.factorization import Factorization, interpolative
from jactus_core.modeling_jactus import LowRankLinear, matrix_shape

Basis = Literal["whitened", "orthonormal"]
ADAPTER_RANK = 16


@dataclass(frozen=True)
class Targets:
    """The layers to compress, and why any other linear layer of the body stays as it is."""

    layers: dict[str, nn.Module]
    left_alone: dict[str, str] = field(default_factory=dict)  # name → reason

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(m, n) of every layer to compress."""
        return {name: matrix_shape(layer) for name, layer in self.layers.items()}

    def without(self, names: set[str], reason: str) -> Targets:
        """Leave more layers alone."""
        kept = {name: layer for name, layer in self.layers.items() if name not in names}
        return Targets(kept, self.left_alone | {name: reason for name in self.layers if name in names})


def find_targets(model: PreTrainedModel, body: str, head: frozenset[str]) -> Targets:
    """Every `nn.Linear` and GPT-2 `Conv1D` of the pretrained body by name; embeddings and the task head are not in it.

    `head` names the parameters of the task head. A layer that shares its weight with another module is left alone.
    Raises UnsupportedModel when nothing is left.
    """
    prefix = f"{body}."
    linears = {
        name: module
        for name, module in model.named_modules()
        if type(module) in (nn.Linear, Conv1D) and name.startswith(prefix) and f"{name}.weight" not in head
    }
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name.removesuffix(".weight"))
    targets = Targets(linears)
    for shared in owners.values():
        if len(shared) > 1:
            targets = targets.without(set(shared), f"shares its weight: {', '.join(sorted(shared))}")
    if not targets.layers:
        raise UnsupportedModel(
            f"{type(model).__name__} has no linear layer in its body that can be compressed"
            + "".join(f"; '{name}' {reason}" for name, reason in targets.left_alone.items())
            + ".",
            "model",
        )
    return targets


def matrix_of(layer: Any) -> Tensor:
    """The weight (m, n) of a linear layer, detached."""
    weight: Tensor = layer.weight.detach()
    return weight.T if isinstance(layer, Conv1D) else weight


def dense_layer(weight: Tensor, bias: Tensor | None, transposed: bool) -> nn.Module:
    """A linear layer of this weight (m, n), as GPT-2's `Conv1D` if `transposed`."""
    m, n = weight.shape
    layer: Any = Conv1D(m, n) if transposed else nn.Linear(n, m, bias is not None)
    layer.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(weight.dtype), requires_grad=False)
    return layer


def multiplied(layer: LowRankLinear, transposed: bool) -> nn.Module:
    """The dense layer that answers as a low-rank one."""
    up = layer.up.weight.detach()
    ordered = torch.cat((up.float(), up.float() @ layer.down.weight.detach().float()), dim=1)
    weight = torch.empty_like(ordered).index_copy_(1, layer.order.long(), ordered)
    return dense_layer(weight.to(up.dtype), layer.bias, transposed)


def train_only(model: nn.Module, names: frozenset[str]) -> None:
    """Freeze every parameter but the named ones, which are kept in float32 while they are trained."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in names)
        if name in names:
            parameter.data = parameter.data.float()


class CoreLinear(nn.Module):
    """A compressed layer in training: y = (base + up · core · down) x + bias, with the core trained.

    In the whitened basis `up` (m, r) and `down` (r, n) are as they come from the factorization, and the core starts at
    diag(S_r), rescaled to mean 1; in the orthonormal basis they are Q factors and the core holds the rest. In a layer
    that stays dense `base` is the frozen W (m, n) and the core starts at zero.
    """

    base: Tensor | None

    def __init__(
        self, dense: Any, factors: Factorization, rank: int, keep_dense: bool, basis: Basis = "whitened"
    ) -> None:
        super().__init__()
        weight = matrix_of(dense)
        m, n = weight.shape
        up, core, down = (part.to(weight.device) for part in _parts(factors, rank, basis))
        self.core = nn.Parameter(torch.zeros_like(core) if keep_dense else core)
        self.up = nn.Parameter(up.to(weight.dtype), requires_grad=False)
        self.down = nn.Parameter(down.to(weight.dtype), requires_grad=False)
        self.bias = dense.bias
        self.register_buffer("base", weight if keep_dense else None)
        self._transposed = isinstance(dense, Conv1D)
        self._multiplied = keep_dense or _is_cheaper_multiplied(m, n, rank)

    @property
    def weight(self) -> Tensor:
        """Not the product: what an architecture that asks a layer for its dtype or device needs (T5 does)."""
        return self.down

    def forward(self, x: Tensor) -> Tensor:
        core = self.core.to(x.dtype)
        if self._multiplied:
            product = self.up @ core @ self.down
            return functional.linear(x, product if self.base is None else self.base + product, self.bias)
        return functional.linear(functional.linear(functional.linear(x, self.down), core), self.up, self.bias)

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """The layer to deploy: in interpolative form, or with the core multiplied into W for a dense one."""
        (m, rank), n = self.up.shape, self.down.shape[1]
        up, core, down = self.up.float(), self.core.float(), self.down.float()
        if self.base is not None:
            weight = (self.base.float() + up @ core @ down).to(self.down.dtype)
            return dense_layer(weight, self.bias, self._transposed)
        layer = LowRankLinear(n, m, rank, self.bias is not None).to(device=up.device, dtype=self.down.dtype)
        order, others = interpolative(down)
        layer.up.weight.copy_(up @ core @ down[:, order[:rank]])
        layer.down.weight.copy_(others)
        layer.order.copy_(order)
        if self.bias is not None:
            layer.up.bias.copy_(self.bias)
        return layer


def lost_share(model: nn.Module) -> float:
    """Of the weights of the layers with cores, what their deployed form does without."""
    kept = dense = 0
    for layer in model.modules():
        if isinstance(layer, CoreLinear):
            (m, rank), n = layer.up.shape, layer.down.shape[1]
            dense += m * n
            kept += low_rank_parameters(m, n, rank) if layer.base is None else m * n
    return 1 - kept / dense


class AdaptedLinear(nn.Module):
    """A dense layer in two parts, y = (R + up · down) x + b, where R + up · down is its weight W at first.

    Both factors, `up` (m, rank) and `down` (rank, n), are trained, R is not. They start as in LoRA (Hu et al. 2022),
    `up` at zero and `down` at random, or, if `principal`, as in PiSSA (Meng et al. 2024): their product is the leading
    part of W's singular value decomposition, each factor taking the square roots of its values.
    """

    @torch.no_grad()
    def __init__(self, dense: nn.Module, rank: int, principal: bool) -> None:
        super().__init__()
        weight = matrix_of(dense)
        up, down = _leading_factors(weight, rank) if principal else _zero_product(weight, rank)
        weight.sub_((up @ down).to(weight.dtype))
        self.dense = dense
        self.principal = principal
        self.up = nn.Parameter(up)
        self.down = nn.Parameter(down)

    @property
    def weight(self) -> Tensor:
        """Not the sum: what an architecture that asks a layer for its dtype or device needs (T5 does)."""
        return matrix_of(self.dense)

    def forward(self, x: Tensor) -> Tensor:
        trained = functional.linear(functional.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        y: Tensor = self.dense(x)
        return y + trained

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """The dense layer, changed in place."""
        weight = matrix_of(self.dense)
        weight.copy_(weight.float() + self.up.float() @ self.down.float())
        return self.dense


def _zero_product(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (m, rank) at zero, down (rank, n) at random, float32."""
    m, n = weight.shape
    down = torch.empty(rank, n).uniform_(-(n**-0.5), n**-0.5)
    return torch.zeros(m, rank, device=weight.device), down.to(weight.device)


def _leading_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """up (m, rank), down (rank, n), float32, whose product is close to the best one of that rank."""
    rank = min(rank, *weight.shape)
    u, s, v = torch.svd_lowrank(weight.float(), min(2 * rank, *weight.shape), niter=4)
    roots = s[:rank].sqrt()
    return u[:, :rank] * roots, (v[:, :rank] * roots).T.contiguous()


def _is_cheaper_multiplied(m: int, n: int, rank: int) -> bool:
    """Whether a training step multiplies less, per token, through the one weight than through the parts.

    Forward, and backward to the input, both take each matrix once; backward to what is trained takes it once more:
    the core, or the whole weight.
    """
    return 3 * m * n < 2 * rank * (m + n) + 3 * rank * rank


def _parts(factors: Factorization, rank: int, basis: Basis) -> tuple[Tensor, Tensor, Tensor]:
    """up (m, r), core (r, r), down (r, n), float32, whose product is the layer at that rank."""
    up, down = factors.up[:, :rank], factors.down[:rank]
    singular = factors.singular[:rank].float().to(up.device)
    if basis == "whitened":
        scale = float(singular.mean()) or 1.0
        return up * scale, torch.diag(singular / scale), down
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.T)
    core = r_up @ torch.diag(singular) @ r_down.T
    scale = float(torch.linalg.matrix_norm(core, "nuc")) / rank or 1.0
    return q_up * scale, core / scale, q_down.T


def dense_core_rank(m: int, n: int) -> int:
    """On how many leading directions the core beside a dense (m, n) layer is: those of two factors of its size."""
    return max(m * n // (m + n), 1)


def install_cores(
    model: nn.Module,
    factors_of: Callable[[str], Factorization],
    ranks: Mapping[str, int | None],
    basis: Basis = "whitened",
) -> None:
    """Replace every layer named in `ranks` by a CoreLinear; None keeps the layer dense, with a core beside it."""
    for name, rank in ranks.items():
        factors = factors_of(name)
        beside = dense_core_rank(factors.up.shape[0], factors.down.shape[1])
        trained = min(beside, factors.rank) if rank is None else rank
        model.set_submodule(name, CoreLinear(model.get_submodule(name), factors, trained, rank is None, basis))


def install_adapters(model: nn.Module, names: Iterable[str], seed: int, principal: bool) -> None:
    """Put two factors to be trained beside every named layer; what the model computes does not change yet."""
    set_seed(seed)
    for name in names:
        model.set_submodule(name, AdaptedLinear(model.get_submodule(name), ADAPTER_RANK, principal))


def adapter_names(model: nn.Module) -> frozenset[str]:
    """Of the parameters of all adapters."""
    adapted = [name for name, module in model.named_modules() if isinstance(module, AdaptedLinear)]
    return frozenset(f"{name}.{part}" for name in adapted for part in ("up", "down"))


def merge_adapters(model: nn.Module) -> None:
    """Make every adapted layer dense again."""
    for name, module in list(model.named_modules()):
        if isinstance(module, AdaptedLinear):
            model.set_submodule(name, module.merged())


def fold_cores(model: nn.Module) -> None:
    """Replace every CoreLinear by the layer to deploy; the logits do not change."""
    for name, module in list(model.named_modules()):
        if isinstance(module, CoreLinear):
            model.set_submodule(name, module.folded())
