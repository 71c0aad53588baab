"""`autotune`: measure the tiles of the triton backend on this machine, and remember the best."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fused_preact.backends import backend
from fused_preact.bench.timing import interleaved

# Calls in one CUDA graph: a launch costs the host more than a small kernel takes.
_CALLS = 10
_ROUNDS = 7


def autotune(model: nn.Module, example: Tensor, *, tell: Callable[[str], object] = lambda message: None) -> Path:
    """Measure, for every fused convolution of `model`, a short list of tiles and torch's own library; use the best from now on.

    Args:
        model: on a GPU, in the memory format and, inside `torch.autocast`, in the dtype that it will train in. It is run once, in eval
            mode and without gradients: nothing of it changes.
        example: a batch (N, C, H, W) of the size that it will train on.
        tell: gets a line for each convolution, for a user who waits.

    Returns the cache file, from which later processes on the same kind of device with the same versions read the choices. What was
    captured in a CUDA graph or compiled before keeps its tiles. Raises ValueError where the triton backend can't be used, or where
    `model` asks nothing of it.
    """
    if isinstance(reason := backend("triton"), str):
        raise ValueError(f"autotune measures the triton backend, which is not usable: {reason}")
    from fused_preact.backends.triton import tuning

    problems = sorted(_problems(model, example), key=repr)
    if not problems:
        raise ValueError("model: expected one with fused convolutions that run on the triton backend, got none")
    device, choices = example.device, {}
    for number, problem in enumerate(problems, 1):
        best = _best(problem, device)
        choices |= best
        found = ", ".join(f"{name.partition(':')[0]} {choice}" for name, choice in best.items())
        tell(f"{number} of {len(problems)}, {problem.geo}: {found}")
    tuning.use(choices)
    return tuning.save(tuning.environment_of(device), choices)


def _problems(model: nn.Module, example: Tensor) -> set[Any]:
    from fused_preact.backends.triton import tuning

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), tuning.recording() as seen:
            model(example)
    finally:
        for module, mode in modes.items():
            module.training = mode
    return seen


def _best(problem: Any, device: torch.device) -> dict[str, Any]:
    """The fastest choices for one convolution: forward, and backward by one kernel, by two, or by torch's library."""
    from fused_preact.backends.triton import tiles, tuning

    fwd, bwd = _calls(problem, device)

    def options(kind: str, also: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        for tile in tiles.candidates(kind, problem):
            yield {tuning.key(kind, problem): tile} | also

    own_fwd, own_bwd = ({tuning.key(f"{direction} by library", problem): False} for direction in ("fwd", "bwd"))
    two = own_bwd | {tuning.key("narrow", problem): None}
    best = _fastest(fwd, [*options("fwd", own_fwd), dict.fromkeys(own_fwd, True)], device)
    dgrad = _fastest(lambda: bwd("g", False), list(options("dgrad", two)), device)
    wgrad = _fastest(lambda: bwd("none", True), list(options("wgrad", two)), device)
    whole = [dgrad | wgrad, *options("narrow", own_bwd), dict.fromkeys(own_bwd, True)]
    return best | _fastest(lambda: bwd("g", True), whole, device)


def _fastest(call: Callable[[], object], options: list[dict[str, Any]], device: torch.device) -> dict[str, Any]:
    """The option under which `call` takes the least time; those that do not compile or fit drop out."""
    runs = {}
    for index, option in enumerate(options):
        # Whatever a candidate breaks on (shared memory, registers, the compiler) is a reason not to choose it.
        with contextlib.suppress(Exception):
            runs[str(index)] = _replay(call, option, device)
    if not runs:
        return {}
    times = interleaved(runs, _ROUNDS, device=device, sample_ms=1.0)
    return options[int(min(times, key=lambda index: times[index].median))]


def _replay(call: Callable[[], object], option: dict[str, Any], device: torch.device) -> Callable[[], object]:
    """`call` as `option` would have it; on a GPU some calls captured in a CUDA graph."""
    from fused_preact.backends.triton import tuning

    def tried() -> None:
        with tuning.trying(option):
            call()

    tried()
    if device.type != "cuda":
        return tried
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(_CALLS):
            tried()
    return graph.replay


def _calls(p: Any, device: torch.device) -> tuple[Callable[[], object], Callable[[str, bool], object]]:
    """Forward and backward (emit, want_dw) of a convolution on random tensors."""
    from fused_preact.backends.triton import conv

    geo = p.geo

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=p.dtype, device=device).contiguous(memory_format=torch.channels_last)

    x = random(p.in_pixels // (geo.H * geo.W), geo.C, geo.H, geo.W)
    y = random(p.out_pixels // (geo.P * geo.Q), geo.K, geo.P, geo.Q)
    weight = random(geo.K, geo.C // geo.groups, geo.R, geo.S)
    vectors, coeffs = torch.rand(5, geo.C, device=device) + 0.5, torch.rand(4, geo.K, device=device)
    geometry = ((geo.stride_h, geo.stride_w), (geo.pad_h, geo.pad_w), (geo.dilation_h, geo.dilation_w), geo.groups, True)

    def fwd() -> object:
        return conv.bn_relu_conv2d_fwd(x, vectors, weight, None, None, *geometry, True, None)

    def bwd(emit: str, want_dw: bool) -> object:
        return conv.bn_relu_conv2d_bwd(y, y, coeffs, None, x, vectors, weight, *geometry, None, emit, None, None, False, want_dw, False)

    return fwd, bwd
