"""Every BN -> ReLU -> conv layer of ResNet-164, 1001 and 200 on the CPU: forward and backward against torch's three calls, and the kernels
against the FMA peak.

Inputs are cold, as in a network: each call takes the next of several sets of tensors, together larger than the last cache.

    python -m benchmarks.layers [--dtype float32] [--cifar-batch 64] [--imagenet-batch 2] [--rounds 9] [--only 3x3] [--json FILE]
"""

import argparse
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fused_preact import bn_relu_conv2d
from fused_preact._files import write_atomically
from fused_preact.backends import choose
from fused_preact.backends.layout import conv_out_shape
from fused_preact.backends.records import Case, Conv
from fused_preact.bench.machine import machine, summary
from fused_preact.bench.probe import fma_probe
from fused_preact.bench.timing import Quartiles, interleaved, quartiles
from fused_preact.models.shapes import LAYER_SHAPES, Layer

COLD_BYTES = 128 << 20
HEADER = f"{'layer':26} {'fused ms':>9} {'eager ms':>9} {'speed':>6}   {'fwd ms':>7} {'of peak':>7} {'bwd ms':>8} {'of peak':>7}"


def shapes(layer: Layer, batch: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of the layer's input and output."""
    x = (batch, layer.in_channels, layer.size, layer.size)
    weight = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
    return x, conv_out_shape(x, weight, (layer.stride,) * 2, (layer.padding,) * 2, (1, 1))


def sets(layer: Layer, batch: int, dtype: torch.dtype) -> list[dict[str, Tensor]]:
    """Input, gradient, and what a unit adds: the residual, and what its deferred gradient is computed from."""
    x, y = shapes(layer, batch)
    each = {"x": x, "dy": y, "dy_x": y, "residual": y}
    count = max(2, COLD_BYTES // (dtype.itemsize * sum(map(math.prod, each.values()))))
    return [
        {name: torch.randn(shape, dtype=dtype).contiguous(memory_format=torch.channels_last) for name, shape in each.items()}
        for _ in range(count)
    ]


def functions(layer: Layer, batch: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """The layer as a differentiable call and as torch's three, forward and backward; and the kernels, called as units call them."""
    torch.manual_seed(0)
    tensors = itertools.cycle(sets(layer, batch, dtype))
    c, k = layer.in_channels, layer.out_channels
    weight = (torch.randn(k, c, layer.kernel, layer.kernel) * 0.05).to(dtype).contiguous(memory_format=torch.channels_last)
    gamma, beta, mean, var = torch.rand(c) + 0.5, torch.randn(c), torch.zeros(c), torch.ones(c)
    inputs = [t.requires_grad_() for t in (gamma, beta, weight)]

    def fused(x: Tensor) -> Tensor:
        return bn_relu_conv2d(x, gamma, beta, mean, var, weight, training=True, stride=layer.stride, padding=layer.padding)

    def eager(x: Tensor) -> Tensor:
        return F.conv2d(F.relu(F.batch_norm(x, mean, var, gamma, beta, training=True)), weight, None, layer.stride, layer.padding)

    def step(forward: Callable[[Tensor], Tensor]) -> None:
        own = next(tensors)
        x = own["x"].detach().requires_grad_()
        torch.autograd.grad(forward(x), [x, *inputs], own["dy"])

    conv = Conv((layer.stride,) * 2, (layer.padding,) * 2, (1, 1), 1)
    example = next(tensors)["x"]
    run = choose(Case("cpu", dtype, example.shape, weight.shape, weight.dtype, conv))
    w = weight.detach()
    bn = run.bn_finalize(run.bn_stats(example), gamma.detach(), beta.detach(), 1e-5, False)
    coeffs = torch.randn(4, k)
    # In a unit the convolution that widens is the last: it adds the residual, and its gradient is not deferred.
    last = k > c

    def forward() -> object:
        own = next(tensors)
        return run.bn_relu_conv2d_fwd(own["x"], bn, w, None, own["residual"] if last else None, *conv, True, True, None)

    def backward() -> object:
        own = next(tensors)
        dy = (own["dy"], None, None, None) if last else (own["dy"], own["dy_x"], coeffs, None)
        return run.bn_relu_conv2d_bwd(*dy, own["x"], bn, w, *conv, True, None, "g", None, None, False, True, False)

    return {"fused": lambda: step(fused), "eager": lambda: step(eager), "fwd": forward, "bwd": backward}


def measure(layer: Layer, batch: int, dtype: torch.dtype, rounds: int) -> dict[str, Any]:
    """Times of one layer, and the FMA peak of the same rounds."""
    probe, probed = fma_probe("cpu", dtype), []
    times = interleaved(functions(layer, batch, dtype), rounds, each_round=probe and (lambda: probed.append(probe())))
    flops = 2 * math.prod(shapes(layer, batch)[1]) * layer.in_channels * layer.kernel**2
    peak = quartiles(probed) if probed else None

    def of_peak(time: Quartiles, products: int) -> float | None:
        return None if peak is None else products * flops / (time.median * 1e6) / peak.median

    return {
        "batch": batch,
        "ms": {name: time._asdict() for name, time in times.items()},
        "speed": times["eager"].median / times["fused"].median,
        "fma_peak_gflop_per_s": peak and peak._asdict(),
        "of_fma_peak": {"fwd": of_peak(times["fwd"], 1), "bwd": of_peak(times["bwd"], 2)},
    }


def row(name: str, result: dict[str, Any]) -> str:
    ms = {key: value["median"] for key, value in result["ms"].items()}
    fractions = {key: "" if value is None else f"{value:.0%}" for key, value in result["of_fma_peak"].items()}
    return (
        f"{name:26} {ms['fused']:9.2f} {ms['eager']:9.2f} {result['speed']:5.2f}x   {ms['fwd']:7.2f} {fractions['fwd']:>7} "
        f"{ms['bwd']:8.2f} {fractions['bwd']:>7}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--cifar-batch", type=int, default=64)
    parser.add_argument("--imagenet-batch", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="layers whose name contains this")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    results = {}
    described = machine()
    print(summary(described))
    print(HEADER)
    for shape in LAYER_SHAPES:
        if args.only in shape.id:
            batch = args.imagenet_batch if next(iter(shape.networks)) == "preact_resnet200" else args.cifar_batch
            results[shape.id] = measure(shape.layer, batch, getattr(torch, args.dtype), args.rounds)
            print(row(shape.id, results[shape.id]), flush=True)
    if args.json:
        report = {"machine": described, "dtype": args.dtype, "rounds": args.rounds, "layers": results}
        write_atomically(args.json, lambda path: path.write_text(json.dumps(report, indent=1)))


if __name__ == "__main__":
    main()
