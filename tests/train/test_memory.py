"""The resident memory of a run does not grow with its steps."""

import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc/self/statm")]

STEPS, WARM = 600, 100
# Growth of the median of a hundred steps over four hundred more. Measured: 0.8 to 0.9 MB, of records and of the allocator's fragments.
# A list of 64 small tensors a step, which has to be found, made it 87 MB.
BOUND_MB = 2.0

RUN = """
import sys
from functools import partial
from pathlib import Path
from statistics import median

import torch

from fused_preact import data
from fused_preact.train import TrainConfig, fit
from fused_preact.train.trainer import Trainer

out, steps, warm, leaked = Path(sys.argv[1]), *map(int, sys.argv[2:])
data.DATASETS["synthetic"] = partial(data.synthetic, train=800, test=8)
step, held, resident = Trainer.step, [], []


def watched(self, batch):
    result = step(self, batch)
    held.append([torch.zeros(64) for _ in range(leaked)])
    resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6)
    return result


Trainer.step = watched
fit(TrainConfig(out=out, model="preact_resnet20", data="synthetic", epochs=None, iterations=steps, batch_size=8, threads=1))
print(median(resident[-100:]) - median(resident[warm : warm + 100]))
"""


@pytest.mark.parametrize("leaked", [0, 64], ids=["as it is", "with a leak"])
def test_memory_is_flat_over_five_hundred_steps(tmp_path, pytestconfig, leaked):
    environment = os.environ | {"PYTHONPATH": str(pytestconfig.rootpath)}
    command = [sys.executable, "-c", RUN, str(tmp_path / "run"), str(STEPS), str(WARM), str(leaked)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    grown = float(result.stdout)
    if leaked:
        assert grown > BOUND_MB
    else:
        assert grown < BOUND_MB
