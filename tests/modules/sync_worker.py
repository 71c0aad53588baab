"""One process of a gloo group: half of a batch through units with SyncBatchNorm. Started by test_sync_bn.py."""

import copy
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from fused_preact import PreActBlock, PreActBottleneck, PreActConv2d, PreActSequential

SIZES = {"uneven": (3, 4), "one-image": (1, 6), "empty": (0, 7)}


def net(memory: str) -> nn.Module:
    torch.manual_seed(0)
    units = PreActSequential(
        PreActBottleneck(6, 2, memory=memory),
        PreActBottleneck(8, 2, memory=memory),
        PreActBlock(8, 8, memory=memory),
        PreActBottleneck(8, 3, 2, preact="shared", memory=memory),
    )
    m = nn.Sequential(PreActConv2d(4, 6, 3, padding=1), units, PreActConv2d(12, 3, 1)).double()
    for bn in m.modules():
        if isinstance(bn, nn.BatchNorm2d):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias)
    return m


def check(rank: int, sizes: tuple[int, int], memory: str, compiled: bool) -> None:
    plain = net(memory)
    m = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(plain))
    if compiled:
        m.compile(fullgraph=True, backend="aot_eager")
    x = torch.randn(sum(sizes), 4, 6, 6, dtype=torch.float64)
    own, whole = (t.clone().requires_grad_() for t in (x.split(sizes)[rank], x))
    y, wanted = m(own), plain(whole)
    y.square().sum().backward()
    wanted.square().sum().backward()
    torch.testing.assert_close(y, wanted.split(sizes)[rank], msg=lambda s: f"y: {s}")
    torch.testing.assert_close(own.grad, whole.grad.split(sizes)[rank], msg=lambda s: f"dx: {s}")
    for (name, p), q in zip(m.named_parameters(), plain.parameters(), strict=True):
        # As in torch, every process has its own part of a parameter's gradient, and DDP adds them.
        dist.all_reduce(p.grad)
        torch.testing.assert_close(p.grad, q.grad, msg=lambda s, name=name: f"gradient of {name}: {s}")
    for (name, b), c in zip(m.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(b, c, msg=lambda s, name=name: f"{name}: {s}")
    m.eval(), plain.eval()
    torch.testing.assert_close(m(x), plain(x), msg=lambda s: f"eval: {s}")


def check_mixed(rank: int, synced: set[int], frozen: set[int]) -> None:
    """Units of one segment whose norms share statistics with different processes: the same as layer by layer."""
    results = []
    for memory in ("layer", "segment"):
        torch.manual_seed(1)
        units = PreActSequential(*(PreActBlock(4, 4, memory=memory) for _ in range(5)), segment=3).double()
        for i in synced:
            units[i] = nn.SyncBatchNorm.convert_sync_batchnorm(units[i])
        for i in frozen:
            units[i].eval()
        x = torch.randn(7, 4, 5, 5, dtype=torch.float64).split((3, 4))[rank].requires_grad_()
        y = units(x)
        y.square().sum().backward()
        results.append((y, x.grad, *(p.grad for p in units.parameters()), *units.buffers()))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def main(rank: int, rendezvous: Path) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=rendezvous.as_uri(), rank=rank, world_size=2)
    for name, sizes in SIZES.items():
        for memory in ("layer", "unit", "segment"):
            check(rank, sizes, memory, compiled=False)
            print(f"{name} {memory}", flush=True)
    check(rank, SIZES["uneven"], "layer", compiled=True)
    check(rank, SIZES["uneven"], "unit", compiled=True)
    print("compiled", flush=True)
    check_mixed(rank, synced={0, 1, 2, 3, 4}, frozen={0})
    check_mixed(rank, synced={2}, frozen={0, 1, 3, 4})
    check_mixed(rank, synced={0}, frozen=set())
    check_mixed(rank, synced={1, 2}, frozen={3})
    check_mixed(rank, synced={1}, frozen={0})
    print("mixed", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
