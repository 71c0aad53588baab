"""A comparison as JSON, and as a table."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from fused_preact.bench.machine import summary
from fused_preact.bench.timing import Quartiles


class Measurement(NamedTuple):
    """One variant: time of a step of `batch_size` images, bytes saved for backward, highest bytes of live tensors."""

    step: Quartiles
    batch_size: int
    saved_bytes: int
    peak_bytes: int

    def as_json(self, step_flops: int, fma_peak: Quartiles | None) -> dict[str, Any]:
        return {
            "step_ms": self.step._asdict(),
            "images_per_s": self.batch_size / self.step.median * 1e3,
            "of_fma_peak": step_flops / self.step.median / fma_peak.median * 1e-6 if fma_peak else None,
            "saved_bytes": self.saved_bytes,
            "peak_bytes": self.peak_bytes,
        }


def report(
    machine: dict[str, Any],
    config: dict[str, Any],
    variants: Mapping[str, Measurement],
    step_flops: int,
    fma_peak: Quartiles | None,
    shares: dict[str, float] | None,
) -> dict[str, Any]:
    """The report that `--json` writes; without `fma_peak` (in GFLOP/s) or `shares`, what depends on them is None.

    A step ratio says how many times faster fused is than the other variant; saved and peak ratios are fused over the other.
    """
    fused, others = variants["fused"], {name: variant for name, variant in variants.items() if name != "fused"}
    return {
        "machine": machine,
        "config": config,
        "step_flops": step_flops,
        "fma_peak_gflop_per_s": fma_peak._asdict() if fma_peak else None,
        "shares": shares,
        "variants": {name: variant.as_json(step_flops, fma_peak) for name, variant in variants.items()},
        "ratios": {
            "step": {name: other.step.median / fused.step.median for name, other in others.items()},
            "saved": {name: fused.saved_bytes / other.saved_bytes for name, other in others.items()},
            "peak": {name: fused.peak_bytes / other.peak_bytes for name, other in others.items()},
        },
    }


def table(report: dict[str, Any]) -> str:
    """The report for people: what was measured, on what, and a row for each variant; the last columns are the ratios."""
    probed = report.get("fma_peak_gflop_per_s") is not None
    fraction = ("of FMA peak",) if probed else ()
    header = ("", "step ms", "q1 .. q3", "images/s", *fraction, "saved MB", "peak MB", "fused speed", "fused saved", "fused peak")
    rows = [header, *(_row(name, variant, report["ratios"], probed) for name, variant in report["variants"].items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip() for row in rows)
    return "\n".join([title(report["config"]), summary(report["machine"]), *_context(report), "", *lines])


def title(config: dict[str, Any]) -> str:
    """What was measured, on one line."""
    side = config["image_size"]
    what = f"{config['model']}: training step of {config['batch_size']} images of {side}x{side}, {config['dtype']}, {config['device']}"
    backend = f", backend {config['backend']}" if config["backend"] else ""
    return f"{what}, memory {config['memory']}{backend}; median of {config['rounds']} interleaved rounds"


def _context(report: dict[str, Any]) -> Iterator[str]:
    # Reports of older versions have neither.
    if peak := report.get("fma_peak_gflop_per_s"):
        yield f"FMA peak, probed in every round: {peak['median']:.1f} GFLOP/s ({peak['q1']:.1f} .. {peak['q3']:.1f})"
    if shares := report.get("shares"):
        yield "time of a fused step: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items())


def _row(name: str, variant: dict[str, Any], ratios: dict[str, dict[str, float]], probed: bool) -> tuple[str, ...]:
    step = variant["step_ms"]
    compared = ("", "", "")
    if name in ratios["step"]:
        compared = (f"{ratios['step'][name]:.2f}x", f"{ratios['saved'][name]:.3f}x", f"{ratios['peak'][name]:.3f}x")
    return (
        name,
        f"{step['median']:.1f}",
        f"{step['q1']:.1f} .. {step['q3']:.1f}",
        f"{variant['images_per_s']:.1f}",
        *((f"{variant['of_fma_peak']:.1%}",) if probed else ()),
        f"{variant['saved_bytes'] / 1e6:.1f}",
        f"{variant['peak_bytes'] / 1e6:.1f}",
        *compared,
    )
