"""Host time of a bottleneck unit, forward and backward, with kernels that only allocate: `host_time` has the ratios."""

import pytest
import torch

from benchmarks import host_time

UNITS = 20


@pytest.fixture(scope="module")
def steps():
    return host_time.steps(UNITS)


@pytest.mark.benchmark(group=f"host time of {UNITS} bottleneck units")
@pytest.mark.parametrize("variant", ["plain", "primitives", "units", "empty Function"])
def test_host_time(benchmark, steps, variant):
    torch.set_num_threads(1)
    benchmark.pedantic(steps[variant], rounds=60, warmup_rounds=10)
    benchmark.extra_info["us_per_unit"] = benchmark.stats.stats.median * 1e6 / UNITS
