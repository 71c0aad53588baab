"""A comparison as JSON, and as a table."""

import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from fused_preact._files import write_atomically
from fused_preact.bench.machine import summary
from fused_preact.bench.timing import Quartiles


class Measurement(NamedTuple):
    """One variant: time of a step of `batch_size` images, bytes saved for backward, highest bytes of live tensors."""

    step: Quartiles
    batch_size: int
    saved_bytes: int
    peak_bytes: int

    def as_json(self) -> dict[str, Any]:
        return {
            "step_ms": self.step._asdict(),
            "images_per_s": self.batch_size / self.step.median * 1e3,
            "saved_bytes": self.saved_bytes,
            "peak_bytes": self.peak_bytes,
        }


def report(machine: dict[str, Any], config: dict[str, Any], variants: Mapping[str, Measurement]) -> dict[str, Any]:
    """The report that `--json` writes.

    A step ratio says how many times faster fused is than the other variant; saved and peak ratios are fused over the other.
    """
    fused, others = variants["fused"], {name: variant for name, variant in variants.items() if name != "fused"}
    return {
        "machine": machine,
        "config": config,
        "variants": {name: variant.as_json() for name, variant in variants.items()},
        "ratios": {
            "step": {name: other.step.median / fused.step.median for name, other in others.items()},
            "saved": {name: fused.saved_bytes / other.saved_bytes for name, other in others.items()},
            "peak": {name: fused.peak_bytes / other.peak_bytes for name, other in others.items()},
        },
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: what was measured, on what, and a row for each variant; the last columns are the ratios."""
    header = ("", "step ms", "q1 .. q3", "images/s", "saved MB", "peak MB", "fused speed", "fused saved", "fused peak")
    rows = [header, *(_row(name, variant, report["ratios"]) for name, variant in report["variants"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)
    return "\n".join([title(report["config"]), summary(report["machine"]), "", *lines])


def title(config: dict[str, Any]) -> str:
    """What was measured, on one line."""
    side = config["image_size"]
    what = f"{config['model']}: training step of {config['batch_size']} images of {side}x{side}, {config['dtype']}, {config['device']}"
    backend = f", backend {config['backend']}" if config["backend"] else ""
    return f"{what}, memory {config['memory']}{backend}; median of {config['rounds']} interleaved rounds"


def write_json(report: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the report to `path`, all of it or nothing."""
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _row(name: str, variant: dict[str, Any], ratios: dict[str, dict[str, float]]) -> tuple[str, ...]:
    step = variant["step_ms"]
    compared = ("", "", "")
    if name in ratios["step"]:
        compared = (f"{ratios['step'][name]:.2f}x", f"{ratios['saved'][name]:.3f}x", f"{ratios['peak'][name]:.3f}x")
    return (
        name,
        f"{step['median']:.1f}",
        f"{step['q1']:.1f} .. {step['q3']:.1f}",
        f"{variant['images_per_s']:.1f}",
        f"{variant['saved_bytes'] / 1e6:.1f}",
        f"{variant['peak_bytes'] / 1e6:.1f}",
        *compared,
    )
