"""The processes of a run, as torchrun starts them."""

import contextlib
import gc
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fused_preact.data.source import Shard


@dataclass(frozen=True)
class World:
    """This process among those of the run; alone, every method gives back what it gets."""

    shard: Shard = Shard()
    device: str = "cpu"

    @property
    def alone(self) -> bool:
        return self.shard.world == 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and speaks."""
        return self.shard.rank == 0

    def total(self, values: Tensor) -> Tensor:
        """The sum of `values` over all processes, in place; every process must come here."""
        if not self.alone:
            dist.all_reduce(values)
        return values

    def told(self, value: Any) -> Any:
        """The first process's `value`, in every process."""
        values = [value]
        if not self.alone:
            dist.broadcast_object_list(values, src=0, device=torch.device(self.device))
        return values[0]

    def any(self, value: int) -> int:
        """The largest `value` of a process."""
        if self.alone:
            return value
        largest = torch.tensor(value, device=self.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)


def launched() -> int:
    """How many processes torchrun started for this run; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def lost(error: RuntimeError) -> bool:
    """Whether `error` is what a process gets that waits for one that has ended: gloo has no class for it."""
    return launched() > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error) or "Connection closed by peer" in str(error))


@contextlib.contextmanager
def joined(device: str) -> Iterator[World]:
    """The world that torchrun's variables tell of: nccl on GPUs, each process on its own, and gloo on CPUs."""
    if launched() == 1:
        yield World(device=device)
        return
    if torch.device(device).type == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device != "cpu" else "gloo")
    try:
        yield World(Shard(dist.get_rank(), dist.get_world_size()), device)
    finally:
        # DDP's networks are cycles that hold the group, whose threads end with it: at the interpreter's exit it is too late, and aborts.
        gc.collect()
        dist.destroy_process_group()
