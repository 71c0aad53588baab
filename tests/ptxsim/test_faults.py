"""Every planted fault is reported at its source line, whatever the order of threads; its correct twin is clean and right."""

import re
from pathlib import Path

import numpy as np
import pytest

from tests.ptxsim.build import missing
from tests.ptxsim.simulator import FORWARD, RANDOM, REVERSE, simulator

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))

SOURCE = (Path(__file__).parent / "kernels" / "faults.cu").read_text()
LINES = {found[1]: number for number, line in enumerate(SOURCE.splitlines(), 1) if (found := re.search(r"// fault: (\w+)", line))}
# What the report says of a fault.
SAYS = {
    "read_before_barrier": r"race \(write, read\) on shared byte",
    "overwrite_before_barrier": r"race \(read, write\) on shared byte",
    "read_before_warp_barrier": r"race \(write, read\) on shared byte",
    "divergent_barrier": r"barrier reached by 32 of 64 threads, the others have exited",
    "divergent_shuffle": r"divergent warp operation: only some lanes of its mask in warp \d can reach it",
    "shuffle_from_absent_lane": r"shfl of thread \d+ \(warp \d lane \d+\) reads lane \d+, which does not take part",
    "shared_out_of_bounds": r"shared write out of bounds by thread 63 \(warp 1 lane 31\) at offset 256 of 256 bytes",
    "global_out_of_bounds": r"global read out of bounds, of 4 bytes by thread 63 .* 4 bytes past the end of 'in'",
    "write_to_input": r"write to 'in', which is read-only, by thread \d+",
    "copy_not_awaited": r"read of shared byte \d+ by thread \d+ .* before a cp.async into it of thread \d+ .* has been waited for",
    "younger_copy_not_awaited": r"read of shared byte \d+ by thread \d+ .* before a cp.async into it of thread \d+ .* has been waited for",
    "uninitialised": r"read of uninitialised shared byte [0-3] by thread 1 \(warp 0 lane 1\)",
    "misaligned": r"misaligned read of 16 bytes by thread \d+",
    "race_between_blocks": r"race \(write, write\) on out byte \d+: block \d thread",
    "last_block": r"race \(write, read\) on out byte \d+: block \d thread",
    "ticket_before_barrier": r"race \(write, read\) on out byte \d+: block \d thread",
}


def run(name, faulty, **config):
    """The CUDA error, what was reported, in and out."""
    sim = simulator()
    library = sim.load("faults")
    sim.clear(**config)
    given, out, ticket = np.arange(64, dtype=np.float32), np.full(256, np.nan, np.float32), np.zeros(1, np.uint32)
    pointers = [sim.memory(given, "in", False), sim.memory(out, "out", True), sim.memory(ticket, "ticket", True)]
    error = library.run(name.encode(), int(faulty), *pointers)
    report = sim.report()
    sim.clear()
    return error, report, given, out


def test_every_fault_is_described():
    assert LINES.keys() == SAYS.keys()
    assert len(re.findall(r"PAIR\(\w+, \d\)", SOURCE)) == len(LINES)


@pytest.mark.parametrize("copies_at_once", [False, True], ids=["late", "at-once"])
@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM], ids=["forward", "reverse", "random"])
@pytest.mark.parametrize("name", LINES)
def test_is_found(name, order, copies_at_once):
    error, report, _, _ = run(name, True, order=order, seed=3, copies_at_once=copies_at_once)
    assert error == 719, report
    own = [line for line in report.splitlines() if re.search(SAYS[name], line)]
    assert own, report
    assert any(f"source line {LINES[name]} [" in line for line in own)
    assert name in own[0]


@pytest.mark.parametrize("copies_at_once", [False, True], ids=["late", "at-once"])
@pytest.mark.parametrize("order", [FORWARD, REVERSE, RANDOM], ids=["forward", "reverse", "random"])
@pytest.mark.parametrize("name", LINES)
def test_twin_is_clean(name, order, copies_at_once):
    error, report, given, out = run(name, False, order=order, seed=3, copies_at_once=copies_at_once)
    assert not report
    assert error == 0
    wanted = {
        "read_before_barrier": given[::-1],
        "overwrite_before_barrier": 2 * given,
        "global_out_of_bounds": given,
        "divergent_barrier": given,
        "write_to_input": np.ones_like(given),
        "last_block": 3 * given + 3,
        "ticket_before_barrier": 3 * given + 3,
    }
    if name in wanted:
        np.testing.assert_array_equal(out[:64], wanted[name])


def test_without_checks_a_race_runs():
    error, report, _, _ = run("read_before_barrier", True, checks=False)
    assert (error, report) == (0, "")
