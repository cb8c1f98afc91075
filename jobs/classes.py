"""Kinds of workers, by what they compute on."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, get_args

DeviceClass = Literal["cpu", "gpu", "gpu-large"]
CLASSES: tuple[DeviceClass, ...] = get_args(DeviceClass)
FLOPS: Mapping[DeviceClass, tuple[float, float]] = {
    "cpu": (2e10, 1e12),
    "gpu": (4e12, 1e14),
    "gpu-large": (1e13, 4e14),
}
"""Floating-point operations per second that a run reaches, from small layers on a weak device to large on a strong."""


def smallest_class(memory: Mapping[DeviceClass, int], needed: int) -> DeviceClass | None:
    """The class with the least memory in bytes (0: no bound) that holds `needed`; None where there is none."""
    bounds = {name: memory[name] or math.inf for name in CLASSES if name in memory}
    fitting = [name for name, bound in bounds.items() if needed <= bound]
    return min(fitting, key=lambda name: bounds[name], default=None)
