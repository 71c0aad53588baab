"""A CPU that says it is a GPU, for `--load`: "cuda" means cpu in every call, torch.cuda does nothing, and all sizes are small.

Registers the backend "sick", which loses the device in forward of one layer and has no memory for emit="sums" of others.
"""

import contextlib
import time
from types import SimpleNamespace

import torch
from torch.overrides import TorchFunctionMode

from benchmarks.gpu_report import ceilings, correctness, primitives, steps
from fused_preact.backends import eager, register
from fused_preact.models.shapes import LAYER_SHAPES
from fused_preact.train import graph

LOST = []


def on_cpu(value):
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class OnCPU(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*map(on_cpu, args), **{key: on_cpu(value) for key, value in (kwargs or {}).items()})


class Generator:
    """A class, because modules imported later annotate with it."""

    def __new__(cls, device="cpu", real=torch.Generator):
        return real(on_cpu(device))


class Event:
    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        self.time = time.perf_counter()

    def synchronize(self):
        synchronize()

    def elapsed_time(self, end):
        return (end.time - self.time) * 1e3


class Stream:
    def __init__(self, device=None):
        self.device = torch.device("cuda", 0)

    def wait_stream(self, other):
        pass


class Capture(contextlib.nullcontext):
    def __init__(self, graph, stream=None):
        super().__init__()


def synchronize(device=None):
    if LOST:
        raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported")


def capture(step):
    """Nothing is recorded: a replay runs the step."""
    step._run()
    return SimpleNamespace(replay=step._run)


def sick_fwd(*args):
    x, weight = args[0], args[2]
    if x.size(1) == 32 and weight.size(0) == 128:
        LOST.append(True)
    return eager.bn_relu_conv2d_fwd(*args)


def sick_bwd(*args):
    if "sums" in args and args[4].size(1) == 16:
        raise torch.OutOfMemoryError("CUDA out of memory")
    return eager.bn_relu_conv2d_bwd(*args)


PROPERTIES = SimpleNamespace(name="simulated", major=9, minor=0, multi_processor_count=2, total_memory=10**11, L2_cache_size=10**4)
FAKES = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "synchronize": synchronize,
    "empty_cache": lambda: None,
    "Event": Event,
    "Stream": Stream,
    "CUDAGraph": object,
    "graph": Capture,
    "stream": contextlib.nullcontext,
    "device": contextlib.nullcontext,
    "current_stream": Stream,
    "get_device_name": lambda device=None: "simulated",
    "get_device_properties": lambda device=None: PROPERTIES,
}
for name, fake in FAKES.items():
    setattr(torch.cuda, name, fake)
torch.Generator = Generator
graph.CapturedStep._capture = capture
OnCPU().__enter__()
register("sick", SimpleNamespace(**vars(eager) | {"bn_relu_conv2d_fwd": sick_fwd, "bn_relu_conv2d_bwd": sick_bwd}))

ceilings.SIZE, ceilings.COPY_BYTES, ceilings.ROUNDS = 64, 1 << 16, 2
primitives.CIFAR_BATCH, primitives.IMAGENET_BATCH, primitives.CHECKED = 1, 1, 2
primitives.ROUNDS, primitives.SAMPLE_MS = 2, 0.0
SMALL = ("16x16-3x3-s1-32px", "32x128-1x1-s1-16px", "64x16-1x1-s1-32px")
primitives.LAYER_SHAPES = tuple(shape for shape in LAYER_SHAPES if shape.id in SMALL)
primitives.RANKED = ("preact_resnet1001", "preact_resnet164")
correctness.CASES = correctness.CASES[:2]
for name, network in steps.NETWORKS.items():
    steps.NETWORKS[name] = steps.Network(network.dry_model, 4, network.dry_model)
steps.ROUNDS = 2
steps.why_no_compile = lambda device: "a simulated GPU compiles nothing"
