"""What a compression would take and give, from the model's configuration alone: nothing is downloaded but config.json.

The model is built on the meta device, so this takes seconds even for models that fill a GPU. Sizes of models, layers
and covariances are exact; memory is what the tensors of each stage add up to, without the allocator's overhead.
"""

from __future__ import annotations

import warnings
from dataclasses import asdict, dataclass
from typing import Any

import torch
import transformers

from jactus_core.allocation import affordable_rank, cheapest, smallest_budget
from jactus_core.calibration import covariance_bytes, find_readers, plan_passes
from jactus_core.config import CompressionConfig
from jactus_core.factorization import factor_size
from jactus_core.layers import ADAPTER_RANK, Targets, dense_core_rank, find_targets
from jactus_core.loading import body_name, read_config, set_labels
from jactus_core.models import ModelReference, find_model
from jactus_core.tasks import TASKS

OPTIMIZER_BYTES = 16
"""Per trained parameter: itself, its gradient and AdamW's two moments, in float32."""
FACTOR_BYTES = 4
ORDER_BYTES = 4
"""Per input of a low-rank layer: its place in the order."""
DECOMPOSITION_BYTES = 8
LOGIT_BYTES = 4
"""Per token and word of the vocabulary."""
LOGITS_HELD = {"calibrating": 4, "allocating": 4, "finetuning": 8, "evaluating": 2}
"""Times: as they are, those that count, as log-probabilities, and the gradients of these; of the teacher as well."""
PROBE_TOKENS = 8
FACTORIZATION_FLOPS = 100
"""Per cubed side of a layer that is whitened, what `factorize` takes at the speed of float32 products; measured."""


@dataclass(frozen=True)
class BudgetEstimate:
    """One point of the frontier, before it exists; parameters and bytes are upper bounds."""

    budget: float
    feasible: bool
    parameters: int
    bytes: int
    compressible_parameters: int
    ranks: dict[str, int | None]  # by shape, such as 384x384, if every layer gets the same fraction; None stays dense


@dataclass(frozen=True)
class Estimate:
    """What a compression would take and give."""

    parameters: int
    bytes: int
    compressible_parameters: int
    layers: int
    smallest_budget: float
    budgets: list[BudgetEstimate]
    covariance_bytes: int  # of all layers together, float32
    calibration_passes: int
    peak_memory_bytes: dict[str, int]  # by stage
    disk_bytes: int  # work folder and checkpoints at their largest
    row_tokens: int  # of the longest row there can be
    decomposition_flops: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def estimate(
    model: str | ModelReference, config: CompressionConfig | None = None, *, classes: int = 2, **changes: Any
) -> Estimate:
    """Sizes, feasibility and memory of a compression of `model`, a hub id or a folder, without running it.

    `classes` is the number of labels of a classification task; `changes` override single settings of `config`, as in
    `compress`. Raises ModelNotFound or UnsupportedModel.
    """
    config = CompressionConfig.model_validate((config or CompressionConfig()).model_dump() | changes)
    task = TASKS[config.task]
    reference = model if isinstance(model, ModelReference) else find_model(model)
    described = read_config(reference, task)
    set_labels(described, [str(number) for number in range(classes)], task)
    described.architectures = described.architectures or []  # transformers fails on None for some types
    with torch.device("meta"):
        built = getattr(transformers, task.auto_class).from_config(described, dtype=getattr(torch, config.dtype))
    body = body_name(built)
    outside = frozenset(name for name, _ in built.named_parameters() if not name.startswith(f"{body}."))
    targets = find_targets(built, body, outside)
    return _estimate(built, targets, _groups(built.eval(), targets, config), config)


def _groups(model: Any, targets: Targets, config: CompressionConfig) -> list[list[str]]:
    """Layers that read the same tensor; each for itself where the architecture cannot run on the meta device."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return find_readers(model, targets.layers, _meta_batch(model, config))
    except Exception:  # noqa: BLE001 - anything an architecture does may depend on real values
        return [[name] for name in targets.layers]


def _meta_batch(model: Any, config: CompressionConfig) -> dict[str, Any]:
    if not TASKS[config.task].reads_images:
        return {"input_ids": torch.zeros(1, PROBE_TOKENS, dtype=torch.long, device="meta")}
    side = _image_side(model)
    return {"pixel_values": torch.zeros(1, 3, side, side, dtype=model.dtype, device="meta")}


def _image_side(model: Any) -> int:
    """Pixels per side that the configuration was made for."""
    size = getattr(model.config, "vision_config", model.config).image_size
    return int(size if isinstance(size, int) else size[0])


def _estimate(model: Any, targets: Targets, groups: list[list[str]], config: CompressionConfig) -> Estimate:
    shapes = targets.shapes
    parameters = sum(parameter.numel() for parameter in model.parameters())
    width = torch.finfo(getattr(torch, config.dtype)).bits // 8
    compressible = sum(m * n for m, n in shapes.values())
    others = parameters - compressible
    counted = others if config.budget_scope == "model" else 0
    smallest = _smallest_budget(shapes.values(), compressible, counted, config)
    orders = ORDER_BYTES * sum(n for _, n in shapes.values())
    budgets = []
    for budget in config.budgets:
        kept = max(int(budget * (compressible + counted)) - counted, 0)
        ranks = {
            f"{m}x{n}": _rank(m, n, kept / compressible, config.rank_multiple) for m, n in sorted({*shapes.values()})
        }
        size = (kept + others) * width + orders
        point = BudgetEstimate(budget, budget >= smallest, kept + others, size, kept, ranks)
        budgets.append(point)

    whole = config.needs_whole_covariances
    sizes = {group[0]: covariance_bytes([shapes[name] for name in group], whole) for group in groups}
    passes = plan_passes(groups, sizes, config.max_covariance_bytes)
    held = _held(passes, sizes)
    weights = parameters * width
    factors = FACTOR_BYTES * sum(factor_size(m, n) for m, n in shapes.values())
    along = {name: width * factor_size(m, n) for name, (m, n) in shapes.items()}
    measured = _held(plan_passes([[name] for name in along], along, config.max_covariance_bytes), along)
    workspace = DECOMPOSITION_BYTES * max(_decomposed(m, n, whole) for m, n in shapes.values())
    tokens = _row_tokens(model, config)
    activations = config.batch_size * tokens * width * sum(m + n for m, n in shapes.values())
    words = 0 if TASKS[config.task].is_classification else model.config.get_text_config().vocab_size
    logits = LOGIT_BYTES * config.batch_size * tokens * words
    trained = sum(_core_rank(m, n, max(config.budgets)) ** 2 for m, n in shapes.values())
    largest = max(point.bytes for point in budgets)
    adapters = ADAPTER_RANK * sum(m + n for m, n in shapes.values()) if config.adapter_epochs else 0
    memory = {
        "loading": weights,
        "calibrating": weights + max(held, OPTIMIZER_BYTES * adapters) + activations,
        "decomposing": weights + held + workspace,
        "allocating": weights + (measured + activations if config.measures else 0),
        "finetuning": 2 * weights + factors + OPTIMIZER_BYTES * trained + activations,
        "evaluating": 2 * weights + activations // len(shapes),
    }
    for stage, times in LOGITS_HELD.items():
        memory[stage] += times * logits
    disk = factors + held + sum(point.bytes for point in budgets) + largest
    return Estimate(
        parameters,
        weights,
        compressible,
        len(shapes),
        smallest,
        budgets,
        sum(sizes.values()),
        len(passes),
        memory,
        disk,
        tokens,
        FACTORIZATION_FLOPS * sum(m**3 + n**3 if whole else min(m, n) ** 3 for m, n in shapes.values()),
    )


def _held(passes: list[list[list[str]]], bytes_of: dict[str, int]) -> int:
    """Bytes of the pass that holds most."""
    return max(sum(bytes_of[group[0]] for group in these) for these in passes)


def _decomposed(m: int, n: int, whole: bool) -> int:
    """Numbers held while a (m, n) layer is factorized."""
    squares = 3 * m * m + 3 * n * n if whole else 9 * min(m, n) ** 2
    return squares + 3 * m * n


def _smallest_budget(shapes: Any, compressible: int, counted: int, config: CompressionConfig) -> float:
    """As `smallest_budget`; a uniform allocation has to satisfy the layer that can give up least."""
    multiple = config.rank_multiple
    smallest = smallest_budget(shapes, counted, multiple)
    if config.allocation == "uniform":
        fraction = max(cheapest(m, n, multiple) / (m * n) for m, n in shapes)
        return max(smallest, (fraction * compressible + counted) / (compressible + counted))
    return smallest


def _rank(m: int, n: int, fraction: float, multiple: int) -> int | None:
    """The largest rank of a (m, n) layer that keeps no more than `fraction` of it, but at least the smallest."""
    if fraction >= 1 or multiple >= min(m, n):
        return None
    return max(affordable_rank(m, n, fraction) // multiple, 1) * multiple


def _core_rank(m: int, n: int, budget: float) -> int:
    """Size of the core of a (m, n) layer that keeps `budget` of it."""
    return affordable_rank(m, n, budget) if budget < 1 else dense_core_rank(m, n)


def _row_tokens(model: Any, config: CompressionConfig) -> int:
    """Positions of the longest row: what texts are cut to, or the patches of a picture."""
    if not TASKS[config.task].reads_images:
        return config.max_length
    vision = getattr(model.config, "vision_config", model.config)
    patch = vision.patch_size if isinstance(vision.patch_size, int) else vision.patch_size[0]
    return int(((config.image_size or _image_side(model)) // patch) ** 2 + 1)
