"""Steps 1 to 3 over a whole model, within a bound on memory: calibrate a share of the layers, factorize it, go on.

Statistics and factors go through the work folder, so a killed run continues, and no more than one pass's covariances
and one layer's factors are held at a time; where directions are measured, one pass's factors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

from jactus_core.allocation import LayerSpectrum
from jactus_core.calibration import (
    LayerStatistics,
    Moments,
    calibrate,
    covariance_bytes,
    find_readers,
    plan_passes,
)
from jactus_core.config import CompressionConfig
from jactus_core.distributed import Processes
from jactus_core.encoding import Encoded, to_device
from jactus_core.factorization import Bases, Factorization, Metric, Product, factor_size, factorize, union_bases
from jactus_core.layers import Targets, matrix_of
from jactus_core.measurement import measure
from jactus_core.progress import Report, StageClock, part
from jactus_core.subspaces import exact
from jactus_core.work import WorkFolder

STATISTICS, ENERGIES = "moments", "energies"
MEASURED_ROWS = 128
"""Of the calibration's, those along which directions are measured."""


@dataclass(frozen=True)
class Decomposed:
    """What is known of one layer once it is factorized; the factors themselves wait in the work folder."""

    m: int
    n: int
    outside: float
    out_dimensions: int  # k_L
    in_dimensions: int  # k_R
    rank: int  # directions kept
    tokens: int
    shrinkage: tuple[float, float]  # intensities of C_x and C_g
    floors: tuple[float, float]  # relative Tikhonov floors of C_x and C_g

    def spectrum(self, singular: Tensor) -> LayerSpectrum:
        """What allocation needs to know, with the layer's singular values."""
        return LayerSpectrum(self.m, self.n, singular.square().cpu().numpy(), self.outside, self.tokens, self.rank)


class Decomposition:
    """The factors of every layer, read from the work folder when they are asked for."""

    def __init__(self, work: WorkFolder, key: str, names: list[str]) -> None:
        self._work = work
        self._key = key
        self._files = {name: f"factors-{number:04d}" for number, name in enumerate(names)}

    def keep(self, name: str, layer: Decomposed, factors: Factorization) -> None:
        tensors = {"up": factors.up, "singular": factors.singular, "down": factors.down}
        self._work.keep(self._files[name], self._key, {"layer": name, **asdict(layer)}, tensors)

    def has(self, names: Iterable[str]) -> bool:
        """Whether all these layers are factorized."""
        return all(self.layer(name) is not None for name in names)

    def silent(self) -> set[str]:
        """Layers that never fired in the passes so far."""
        return {*(self._work.recall("silent", self._key) or ())}

    def keep_statistics(self, groups: list[list[str]], statistics: Mapping[str, LayerStatistics]) -> None:
        """Keep a pass's statistics until its layers are factorized."""
        moments = {f"inputs.{name}": seen.inputs for name, seen in statistics.items() if seen.inputs.of_products}
        moments |= {f"inputs.{group[0]}": statistics[group[0]].inputs for group in groups}
        moments |= {f"gradients.{name}": seen.gradients for name, seen in statistics.items()}
        counts = {slot: [m.size, m.tokens, m.rows, m.probed, m.spread, float(m.squares)] for slot, m in moments.items()}
        self._work.keep(STATISTICS, self._key, counts, {slot: m.total for slot, m in moments.items()})

    def recall_statistics(self, groups: list[list[str]], device: torch.device) -> dict[str, LayerStatistics] | None:
        """What was kept for these groups, if it was for all; on the device of its making the factors are the same."""
        counts = self._work.recall(STATISTICS, self._key) or {}
        if not all(f"gradients.{name}" in counts for group in groups for name in group):
            return None
        tensors = self._work.tensors(STATISTICS)
        moments = {slot: Moments(tensors[slot].to(device), *seen) for slot, seen in counts.items()}
        return {
            name: LayerStatistics(
                moments.get(f"inputs.{name}", moments[f"inputs.{group[0]}"]), moments[f"gradients.{name}"]
            )
            for group in groups
            for name in group
        }

    def close_pass(self, silent: set[str]) -> None:
        """All layers of a pass are factorized, or never fired."""
        self._work.keep("silent", self._key, dict.fromkeys(sorted(silent), 0))
        self._work.drop(STATISTICS)

    def layer(self, name: str) -> Decomposed | None:
        """None until the layer is factorized."""
        facts = self._work.recall(self._files[name], self._key)
        return None if facts is None else Decomposed(**{key: facts[key] for key in Decomposed.__dataclass_fields__})

    def factors(self, name: str) -> Factorization:
        layer, tensors = self.layer(name), self._work.tensors(self._files[name])
        assert layer is not None
        return Factorization(
            tensors["up"],
            tensors["singular"],
            tensors["down"],
            layer.outside,
            layer.out_dimensions,
            layer.in_dimensions,
        )

    def keep_energies(self, energies: Mapping[str, Tensor]) -> None:
        """What was measured of every layer's directions."""
        self._work.keep(ENERGIES, self._key, {}, energies)

    def energies(self) -> dict[str, Tensor] | None:
        """None until they are measured."""
        return None if self._work.recall(ENERGIES, self._key) is None else self._work.tensors(ENERGIES)

    def spectrum(self, name: str) -> LayerSpectrum:
        """By what the covariances predict."""
        layer, tensors = self.layer(name), self._work.tensors(self._files[name], "singular")
        assert layer is not None
        return layer.spectrum(tensors["singular"])


def decompose(
    model: nn.Module,
    targets: Targets,
    data: Encoded,
    config: CompressionConfig,
    done: Decomposition,
    clock: StageClock,
    report: Report,
    processes: Processes,
) -> Targets:
    """Calibrate on `data` and factorize every layer into `done`; returns the layers but those that never fired."""
    clock.enter("calibrating")
    device = next(model.parameters()).device
    rows = data.batch_rows(config.batch_size, config.seed)
    mine = processes.share(rows)
    groups = find_readers(model, targets.layers, to_device(data.batch(rows[0]), device))
    whole = config.needs_whole_covariances
    sizes = {group[0]: covariance_bytes([targets.shapes[name] for name in group], whole) for group in groups}
    passes = plan_passes(groups, sizes, config.max_covariance_bytes or _room(device, processes))
    silent = done.silent()
    pending = [[group for group in these if not done.has({*group} - silent)] for these in passes]
    finished = len(targets.layers) - sum(len(group) for these in pending for group in these)
    processes.wait()  # all have looked before any writes
    for number, these in enumerate(pending):
        if not these:
            continue
        clock.enter("calibrating")
        show = part(report, "calibrating", number, len(passes), f"covariances of {len(targets.layers)} layers")
        statistics = done.recall_statistics(these, device)
        processes.wait()
        if statistics is None:
            transformers.set_seed(config.seed)  # sampled labels are the same in every pass
            batches = _moving(data, mine, device, show)
            statistics = calibrate(model, targets.layers, these, batches, config.draws_labels, processes, whole)
            if processes.is_first:
                done.keep_statistics(these, statistics)
        clock.enter("decomposing")
        silent |= {name for group in these if statistics[group[0]].inputs.tokens == 0 for name in group}
        for group in processes.share([group for group in these if not silent & {*group}]):
            for name, layer, factors in factorized(targets, {name: statistics[name] for name in group}, config):
                done.keep(name, layer, factors)
            finished += len(group) * processes.count
            report("decomposing", min(finished / len(targets.layers), 1.0), group[-1])
        processes.wait()
        if processes.is_first:
            done.close_pass(silent)
        processes.wait()
    report("calibrating", 1.0, f"covariances of {len(targets.layers)} layers")
    report("decomposing", 1.0, f"{len(targets.layers) - len(silent)} layers")
    return targets.without(silent, "never fired on the calibration rows")


def spectra(
    model: nn.Module,
    targets: Targets,
    data: Encoded,
    config: CompressionConfig,
    done: Decomposition,
    report: Report,
    processes: Processes,
) -> dict[str, LayerSpectrum]:
    """What allocation needs to know of every layer, once all of them are factorized from the calibration on `data`."""
    predicted = {name: done.spectrum(name) for name in targets.layers}
    if not config.measures:
        return predicted
    energies = done.energies()
    if energies is None:
        energies = {}
        device = next(model.parameters()).device
        few = data.sample(MEASURED_ROWS, config.seed)
        mine = processes.share(few.batch_rows(config.batch_size, config.seed))
        width = next(model.parameters()).element_size()
        sizes = {name: width * factor_size(m, n) for name, (m, n) in targets.shapes.items()}
        bound = config.max_covariance_bytes or _room(device, processes)
        passes = plan_passes([[name] for name in sizes], sizes, bound)
        for number, these in enumerate(passes):
            show = part(report, "allocating", number, len(passes), f"directions of {len(sizes)} layers")
            layers = {name: targets.layers[name] for group in these for name in group}
            transformers.set_seed(config.seed)
            batches = _moving(few, mine, device, show)
            energies |= measure(model, layers, done.factors, batches, config.draws_labels, processes)
        if processes.is_first:
            done.keep_energies(energies)
        processes.wait()
    return measured(predicted, energies)


def measured(predicted: Mapping[str, LayerSpectrum], energies: Mapping[str, Tensor]) -> dict[str, LayerSpectrum]:
    """With what was measured in the place of what the covariances predict, but for what is outside of a union."""
    return {
        name: replace(spectrum, energies=energies[name].cpu().numpy()) if name in energies else spectrum
        for name, spectrum in predicted.items()
    }


def _moving(
    data: Encoded, batches: Sequence[list[int]], device: torch.device, show: Callable[[float], None]
) -> Iterator[dict[str, Any]]:
    """Batches on the device, one at a time; `show` is told how far they are."""
    for number, rows in enumerate(batches, start=1):
        yield to_device(data.batch(rows), device)
        show(number / len(batches))


def factorized(
    targets: Targets, statistics: Mapping[str, LayerStatistics], config: CompressionConfig
) -> Iterator[tuple[str, Decomposed, Factorization]]:
    """Factorize layers that read the same tensors."""
    shared: dict[int, _Side] = {}
    for name, seen in statistics.items():
        where = exact(seen.inputs.total.device)
        weight = matrix_of(targets.layers[name]).to(where).double()
        inputs = shared.get(id(seen.inputs)) or _side(seen.inputs, weight, config.weighting != "none", config)
        outputs = _side(seen.gradients, weight.T, config.weighting == "fisher", config)
        shared[id(seen.inputs)] = inputs
        bases: Bases | None = None
        if config.union == "thresholds":
            energies = config.weight_energy, config.input_energy, config.gradient_energy
            bases = union_bases(weight, inputs.covariance, outputs.covariance, energies)
        factors = factorize(weight, inputs.norm, outputs.norm, bases)
        m, n = weight.shape
        layer = Decomposed(
            m,
            n,
            factors.outside,
            factors.out_dimensions,
            factors.in_dimensions,
            factors.rank,
            seen.gradients.tokens,
            (inputs.intensity, outputs.intensity),
            (inputs.norm.floor, outputs.norm.floor),
        )
        yield name, layer, factors


class _Side(NamedTuple):
    """What a layer reads, or the gradients of what it writes, ready to factorize."""

    norm: Metric | Product
    covariance: Tensor  # shrunk, without the floor
    intensity: float


def _side(moments: Moments, weight: Tensor, weighted: bool, config: CompressionConfig) -> _Side:
    """Of one side's moments; `weight` (k, d) goes from this side to the other."""
    identity = weight @ weight.T if moments.of_products else None
    covariance, intensity = moments.shrunk(config.shrinkage, identity)
    norm: Metric | Product
    if identity is None:
        metric = Metric.of(covariance, config.covariance_floor) if weighted else None
        norm = metric or Metric.identity(len(covariance), covariance.device)
    elif weighted:
        norm = Product.of(covariance, identity, config.covariance_floor, moments.mean_square)
    else:
        norm = Product(identity, 0.0)
    return _Side(norm, covariance, intensity)


def _room(device: torch.device, processes: Processes) -> int | None:
    """Half of what the fullest GPU has free; no bound on the CPU."""
    if device.type != "cuda":
        return None
    return processes.least(torch.cuda.mem_get_info(device)[0] // 2, device)
