"""One process of a gloo group that trains the package's own networks, sharded and whole. Started by test_fsdp.py."""

import gc
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard

from fused_preact.models import create_model
from fused_preact.models.resnet import PreActResNet


def trained(model: PreActResNet) -> list[Tensor]:
    """Parameters and buffers after two steps on the same images in every process, whose mean gradient is that of one."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        images = torch.randn(4, 3, 16, 16, generator=generator, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
        labels = torch.randint(10, (4,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return [*(p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()), *model.buffers()]


def network(name: str, memory: str) -> PreActResNet:
    torch.manual_seed(0)
    return create_model(name, memory=memory).double()


def sharded(name: str, memory: str) -> PreActResNet:
    model = network(name, memory)
    for unit in model.units():
        fully_shard(unit)
    return fully_shard(model)


def largest_difference(name: str, memory: str) -> float:
    pairs = zip(trained(network(name, memory)), trained(sharded(name, memory)), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def main(rank: int, folder: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=(folder / "rendezvous").as_uri(), rank=rank, world_size=2)
    cases = [(name, memory) for name in ("preact_resnet20", "preact_resnet29") for memory in ("layer", "unit", "segment")]
    found = {f"{name} {memory}": largest_difference(name, memory) for name, memory in cases}
    (folder / f"differences{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    # Networks in cycles hold the group, whose threads end with it: at the interpreter's exit it would be too late, and abort the process.
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
