"""One comparison from beginning to end: build, agree, weigh, time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from fused_preact.bench.agree import check
from fused_preact.bench.machine import machine
from fused_preact.bench.memory import peak_bytes, saved_bytes
from fused_preact.bench.probe import fma_probe, step_flops
from fused_preact.bench.report import Measurement, report
from fused_preact.bench.share import shares
from fused_preact.bench.timing import interleaved, quartiles
from fused_preact.bench.variants import Config, Variant, batch, build, common_weights, compiling


def compare(config: Config, against: Sequence[str], rounds: int, tell: Callable[[str], object] = lambda message: None) -> dict[str, Any]:
    """Measure the fused network and the variants named in `against` ("eager", "compile"); returns the report as JSON has it.

    Args:
        config: what to measure.
        against: the variants to compare with.
        rounds: timed steps of each variant.
        tell: gets a few words on what is being done, for a user who waits.

    Raises Disagreement, before any timing, if a variant computes something else.
    """
    with tuned(torch.device(config.device)), compiling() if "compile" in against else contextlib.nullcontext():
        weights = common_weights(config)
        variants = [build(name, config, weights) for name in ("fused", *against)]
        tell("checking that all variants agree")
        check(variants, config, weights)
        images, labels = batch(config)
        measured = {}
        for variant in variants:
            tell(f"weighing {variant.name}")
            measured[variant.name] = _weigh(variant, images, labels)
        tell(f"timing {rounds} rounds")
        steps = {variant.name: lambda step=variant.step: step(images, labels) for variant in variants}
        probe, probed = fma_probe(config.device, config.torch_dtype), []
        times = interleaved(steps, rounds, device=config.device, each_round=probe and (lambda: probed.append(probe())))
        shared = shares(steps["fused"], config.device, config.backend)
    measurements = {name: Measurement(times[name], config.batch_size, *measured[name]) for name in measured}
    described, peak = _described(config, against, rounds), quartiles(probed) if probed else None
    return report(machine(config.device), described, measurements, step_flops(config), peak, shared)


@contextlib.contextmanager
def tuned(device: torch.device) -> Iterator[None]:
    """Surrounds measurements on `device`: of a GPU it is the current one, with cuDNN's choice of algorithms by measurement."""
    if device.type != "cuda":
        yield
        return
    # What everyone who trains on fixed shapes sets: eager must not lose for want of it.
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        with torch.cuda.device(device):
            yield
    finally:
        torch.backends.cudnn.benchmark = before


def _weigh(variant: Variant, images: torch.Tensor, labels: torch.Tensor) -> tuple[int, int]:
    variant.step(images, labels)
    saved = saved_bytes(variant.model, lambda: variant.forward(images, labels))
    peak = peak_bytes(lambda: variant.step(images, labels), [*variant.live(), images, labels], images.device)
    return saved, peak


def _described(config: Config, against: Sequence[str], rounds: int) -> dict[str, Any]:
    return config._asdict() | {"image_size": config.pixels, "against": list(against), "rounds": rounds, "memory_format": "channels_last"}
