"""One process of a gloo group that trains fused models and unfused ones in turns. Started by test_distributed.py."""

import copy
import gc
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import fused_preact as fp
from tests.convert.networks import Bottleneck


class Layer(nn.Sequential):
    """Its result is that of a fused convolution, and leaves the module uncomputed."""

    def __init__(self, c: int) -> None:
        super().__init__(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1, bias=False))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), Bottleneck(8, 2), Bottleneck(8, 4, 2), Layer(16), nn.BatchNorm2d(16), nn.Conv2d(16, 5, 1)]
    return nn.Sequential(*layers).double()


def batch(rank: int, sizes: tuple[int, int] = (4, 4)) -> Tensor:
    images = torch.randn(sum(sizes), 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return images.contiguous(memory_format=torch.channels_last).split(sizes)[rank]


def trained(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Parameters and buffers after two steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return [*(p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()), *model.buffers()]


def check_wrapped(rank: int, wrap: Callable[[nn.Sequential], nn.Module]) -> None:
    wanted, got = (trained(wrap(m), batch(rank)) for m in (network(), fp.fuse(network())))
    for a, b in zip(wanted, got, strict=True):
        torch.testing.assert_close(b, a)


def by_units(**options: Any) -> Callable[[nn.Sequential], nn.Module]:
    def wrap(model: nn.Sequential) -> nn.Module:
        for unit in model[1:4]:
            fully_shard(unit, **options)
        return fully_shard(model, **options)

    return wrap


def check_sync(rank: int, sizes: tuple[int, int]) -> None:
    """Two processes are one with the whole batch."""
    plain = network()
    model = fp.fuse(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain)))
    own, whole = batch(rank, sizes).requires_grad_(), torch.cat([batch(i, sizes) for i in (0, 1)]).requires_grad_()
    y, wanted = model(own), plain(whole)
    y.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(y, wanted.split(sizes)[rank])
    torch.testing.assert_close(own.grad, whole.grad.split(sizes)[rank])
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        dist.all_reduce(p.grad)
        torch.testing.assert_close(p.grad, q.grad)
    for b, c in zip(model.buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(b, c)


CHECKS: dict[str, Callable[[int], None]] = {
    "ddp": lambda rank: check_wrapped(rank, DistributedDataParallel),
    "ddp-static": lambda rank: check_wrapped(rank, lambda m: DistributedDataParallel(m, static_graph=True, gradient_as_bucket_view=True)),
    "ddp-unused": lambda rank: check_wrapped(rank, lambda m: DistributedDataParallel(m, find_unused_parameters=True)),
    "fsdp-whole": lambda rank: check_wrapped(rank, fully_shard),
    "fsdp-whole-resharded": lambda rank: check_wrapped(rank, lambda m: fully_shard(m, reshard_after_forward=True)),
    "fsdp-units": lambda rank: check_wrapped(rank, by_units()),
    "fsdp-units-kept": lambda rank: check_wrapped(rank, by_units(reshard_after_forward=False)),
    "sync": lambda rank: check_sync(rank, (4, 4)),
    "sync-uneven": lambda rank: check_sync(rank, (3, 5)),
}


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2)
    outcomes = {}
    for name, check in CHECKS.items():
        try:
            check(rank)
            outcomes[name] = ""
        except Exception as error:
            outcomes[name] = f"{type(error).__name__}: {error}"
    (folder / f"outcomes{rank}.json").write_text(json.dumps(outcomes), encoding="utf-8")
    # Networks in cycles hold the group, whose threads end with it: at the interpreter's exit it would be too late, and abort the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
