"""What all tests share: one thread a worker, fixed seeds, and memory that is NaN until somebody writes it."""

import os
from collections.abc import Iterator

# Before torch loads OpenMP: threads that spin while they wait would take the cores from those that other workers wait for.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
import torch

from tests.ptxsim import build

# Before anything imports the backends: without a GPU Triton's kernels run in its interpreter, and CUDA's in a simulator.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
    if build.missing() is None:
        os.environ["FUSED_PREACT_CUDA_SIM"] = "1"
        build.build()


@pytest.fixture(autouse=True)
def one_thread_and_fixed_seeds(request: pytest.FixtureRequest) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    # Only where a test is marked for it.
    torch.backends.cudnn.allow_tf32 = request.node.get_closest_marker("tf32") is not None
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(autouse=True)
def poisoned_memory(request: pytest.FixtureRequest) -> Iterator[None]:
    """torch.empty and its kin give NaN, so that an output left unwritten fails. Not under the compiler, which has a mode of its own."""
    if request.node.get_closest_marker("compile"):
        # What other tests compiled counts against the limit of recompilations.
        torch._dynamo.reset()
        yield
        return
    torch.use_deterministic_algorithms(True)
    fill, torch.utils.deterministic.fill_uninitialized_memory = torch.utils.deterministic.fill_uninitialized_memory, True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs leave a curves.png that nobody drew: half a second less each. test_curves.py and runs in other processes draw."""
    from fused_preact.train import curves

    monkeypatch.setattr(curves, "draw", lambda history, title, path: path.touch())
