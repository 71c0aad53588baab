"""The simulator computes what a GPU did, where one has recorded it."""

import numpy as np
import pytest

from tests.ptxsim import golden
from tests.ptxsim.build import missing
from tests.ptxsim.simulator import simulator

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))


def simulate(call: golden.Call) -> np.ndarray:
    sim = simulator()
    library = sim.load(call.library)
    sim.clear()
    out = call.output.copy()
    pointers = [sim.memory(array, f"in{i}", False) for i, array in enumerate(call.inputs)]
    error = getattr(library, call.function)(*call.first, *pointers, sim.memory(out, "out", True), *call.last)
    assert not sim.report()
    assert error == 0
    sim.clear()
    return out


def test_everything_recorded_runs():
    results = golden.record(simulate)
    assert results.keys() == golden.calls().keys()
    assert all(result.any() for result in results.values())


@pytest.mark.skipif(not golden.FILE.exists(), reason=f"no GPU has recorded {golden.FILE.name} yet")
@pytest.mark.parametrize("name", golden.calls())
def test_equals_a_gpu(name):
    call = golden.calls()[name]
    with np.load(golden.FILE) as file:
        wanted = file[name]
    if name.startswith("mma"):
        # Tensor cores keep fewer digits of a sum than float64, in an order of their own.
        np.testing.assert_allclose(simulate(call), wanted, rtol=0, atol=2e-5)
    else:
        np.testing.assert_array_equal(simulate(call), wanted)
