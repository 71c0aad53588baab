"""Bytes saved for backward and peak bytes of a training step, fused over eager PyTorch, in every memory mode.

Bytes do not depend on what else the machine does, so nothing is timed.

    python -m benchmarks.memory [--json FILE]
"""

import argparse
import json
from pathlib import Path
from typing import Any

from fused_preact._files import write_atomically
from fused_preact.bench.machine import machine
from fused_preact.bench.memory import peak_bytes, saved_bytes
from fused_preact.bench.variants import Config, batch, build, common_weights
from fused_preact.functional.preact_unit import MEMORIES

# Large enough for activations to outweigh parameters, small enough for 24 GB.
BATCHES = {"preact_resnet110": 16, "preact_resnet164": 16, "preact_resnet1001": 8, "preact_resnet200": 2}


def weigh(name: str, config: Config) -> dict[str, int]:
    """Saved and peak bytes of one variant, after a step that warms it up."""
    variant = build(name, config, common_weights(config))
    images, labels = batch(config)
    variant.step(images, labels)
    return {
        "saved_bytes": saved_bytes(variant.model, lambda: variant.forward(images, labels)),
        "peak_bytes": peak_bytes(lambda: variant.step(images, labels), [*variant.live(), images, labels], images.device),
    }


def measure() -> dict[str, Any]:
    """Every network: eager PyTorch, and fused in each memory mode with its ratios to eager."""
    networks = {}
    for model, images in BATCHES.items():
        eager = weigh("eager", Config(model, images))
        modes = {memory: weigh("fused", Config(model, images, memory=memory)) for memory in MEMORIES}
        ratios = {memory: {kind: mode[kind] / eager[kind] for kind in eager} for memory, mode in modes.items()}
        networks[model] = {"batch_size": images, "eager": eager, "fused": modes, "fused_over_eager": ratios}
    return {"machine": machine(), "networks": networks}


def table(result: dict[str, Any]) -> str:
    """Saved bytes over eager's, and peak bytes in brackets, as Markdown."""
    lines = [f"| network, batch | {' | '.join(MEMORIES)} |", "|---" * (1 + len(MEMORIES)) + "|"]
    for name, network in result["networks"].items():
        cells = (f"{r['saved_bytes']:.3f} ({r['peak_bytes']:.3f})" for r in network["fused_over_eager"].values())
        lines.append(f"| {name}, {network['batch_size']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the bytes here")
    args = parser.parse_args()
    result = measure()
    print(table(result))
    if args.json:
        write_atomically(args.json, lambda path: path.write_text(json.dumps(result, indent=1) + "\n"))


if __name__ == "__main__":
    main()
