"""What whole units launch, move and keep."""

import pytest
import torch

from tests.cuda.kernels import needs_simulator
from tests.cuda.units import KINDS, Kind, Tensors, bwd, copies, fwd, plan_of, tensors
from tests.ptxsim.simulator import Launch, simulator

pytestmark = needs_simulator


def step(kind: Kind, t: Tensors) -> list[Launch]:
    """The launches of forward and backward in the middle of a chain, where statistics are given and wanted."""
    stats = torch.ones(1, 3, t.x.size(1))
    sim = simulator()
    sim.clear()
    _, _, bns, inner = fwd("cuda", kind, copies(t), stats=stats)
    bwd("cuda", kind, t, bns, inner)
    return sim.launches()


def names(launches: list[Launch], *parts: str) -> list[int]:
    return [sum(part in launch.kernel for launch in launches) for part in parts]


# Inner gradients are deferred: bn_bwd only ends the chain, where a second dgrad does not.
@pytest.mark.parametrize(
    ("kind", "count", "bn_bwd"), [("bottleneck", 14, 0), ("shared-bottleneck", 15, 0), ("block", 11, 1)], ids=lambda v: str(v)
)
def test_launches_of_a_step(kind, count, bn_bwd):
    kind = KINDS[kind]
    launches = step(kind, tensors(kind))
    assert names(launches, "bn_bwd_kernel", "bn_stats_kernel") == [bn_bwd, 0]
    assert len(launches) <= count


@pytest.fixture
def on_device(monkeypatch):
    """A function: plans are for a device of so many multiprocessors, until the test ends."""
    from fused_preact.backends.cuda import bn, conv, environment, unit_plan

    def forget():
        for planned in (bn._grid, conv.fwd_plan, conv.bwd_plan, unit_plan.plan):
            planned.cache_clear()

    def on(multiprocessors):
        monkeypatch.setattr(environment, "device", lambda index: environment.A100._replace(multiprocessors=multiprocessors))
        forget()

    yield on
    forget()


ACTIVATIONS = ("x", "y", "dy", "dx", "inner0", "inner1", "g0", "g1", "dz")
SECTOR = 32


# Forward has 16w of it. Of 8 images of 8x8 blocks share out channels, to be more, and read the same pixels; not where there is a tile for
# each multiprocessor, as of 128 images on an H200.
@pytest.mark.parametrize(
    ("w", "shape", "multiprocessors", "most", "count"),
    [(16, (4, 32, 32), 108, 46.5, 14), (32, (4, 16, 16), 108, 47.1, 14), (64, (8, 8, 8), 108, 57.1, 15), (64, (8, 8, 8), 8, 53.1, 15)],
    ids=["stage1", "stage2", "stage3", "stage3-as-of-128-images"],
)
def test_elements_moved_by_a_bottleneck(w, shape, multiprocessors, most, count, on_device):
    """Of activations, a pixel."""
    on_device(multiprocessors)
    kind = Kind(KINDS["bottleneck"].unit, (w, w, 4 * w))
    t = tensors(kind, shape=shape, c=4 * w)
    launches = step(kind, t)
    assert len(launches) == count
    sectors = sum(count for launch in launches for name, (count, _) in launch.global_.items() if name in ACTIVATIONS)
    n, height, width = shape
    assert sectors * SECTOR / t.x.element_size() / (n * height * width) <= most * w


def test_activations_in_the_workspace():
    """Backward has the gradients of two inner activations, and what it computes again; pieces begin at lines and do not overlap."""
    kind = KINDS["bottleneck"]
    made = plan_of(kind, tensors(kind, shape=(8, 32, 32)))
    inner = 8 * 32 * 32 * kind.out[0] * 2
    again = {"inner0": inner, "inner1": inner}
    for pieces, wanted in (
        (made.fwd_pieces[True], {}),
        (made.fwd_pieces[False], again),
        (made.bwd_pieces[True], {"g0": inner, "g1": inner}),
        (made.bwd_pieces[False], {"g0": inner, "g1": inner} | again),
    ):
        assert {name: size for name, _, size in pieces if name in ACTIVATIONS} == wanted
        ends = [0, *(offset + size for _, offset, size in pieces)]
        assert all(offset >= end and offset % 128 == 0 for (_, offset, _), end in zip(pieces, ends, strict=False))
