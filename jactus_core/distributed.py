"""Several processes at one compression, started by `torchrun` or `accelerate launch`; alone, all of this does nothing.

The processes share the output folder. Each takes its share of the calibration batches, of the layers to factorize and
of the rows to evaluate; sums are all-reduced, files are written by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, distributed

Item = TypeVar("Item")


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    rank: int = 0
    count: int = 1

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Meet the others that the launcher's environment names; with gloo on the CPU, nccl on GPUs."""
        state = PartialState(cpu=device.type == "cpu")
        return cls(state.process_index, state.num_processes)

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Every `count`-th item, so that all processes together have each item once."""
        return items[self.rank :: self.count]

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over all processes."""
        if self.count > 1:
            distributed.all_reduce(tensor)
        return tensor

    def least(self, value: int, device: torch.device) -> int:
        """The smallest value that any process has."""
        found = torch.tensor(value, device=device)
        if self.count > 1:
            distributed.all_reduce(found, distributed.ReduceOp.MIN)
        return int(found)

    def wait(self) -> None:
        """Until all processes have come this far."""
        if self.count > 1:
            distributed.barrier()


ALONE = Processes()
