"""The report for people: what was found, in as few lines as will do."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.gpu_report.rows import Row
from fused_preact.bench.machine import summary as machine_line

NETWORKS = ("preact_resnet1001", "preact_resnet164", "preact_resnet200")
MOST_FAILURES = 15


def summary(report: dict[str, Any]) -> str:
    """All parts that have rows, in the order of the report; failures and seconds last."""
    rows = report["rows"]
    by_part: dict[str, list[Row]] = {}
    for row in rows:
        by_part.setdefault(row["part"], []).append(row)
    sections = [
        _machine(by_part.get("machine", [])),
        _ceilings(by_part.get("ceilings", [])),
        _correctness(by_part.get("correctness", [])),
        _primitives(by_part.get("primitives", [])),
        _networks(by_part.get("primitives", [])),
        *(_steps(part, mine) for part, mine in by_part.items() if part in ("resnet1001", "resnet164", "resnet200")),
        _memory(by_part.get("memory", [])),
        _tools([*by_part.get("sanitizer", []), *by_part.get("profile", [])]),
        _failures(rows),
        ["seconds: " + ", ".join(f"{part} {seconds:.0f}" for part, seconds in report["seconds"].items())],
    ]
    if report["options"]["dry"]:
        sections.insert(0, ["DRY RUN: tiny sizes; no time or rate below means anything"])
    return "\n\n".join("\n".join(section) for section in (list(lines) for lines in sections) if section)


def table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Columns aligned, the first to the left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()


def number(row: Row | None, key: str, form: str = ".2f", scale: float = 1.0) -> str:
    """One number of a row, "-" where there is none; of a time, the median."""
    value = (row or {}).get(key)
    value = value["median"] if isinstance(value, dict) else value
    return "-" if value is None else format(value * scale, form)


def _machine(rows: list[Row]) -> Iterator[str]:
    found: dict[str, Any] = {}
    for row in rows:
        found |= row
    if "torch" in found:
        yield machine_line(found)
    if "l2_bytes" in found:
        l2, memory = found["l2_bytes"] / 1e6, found["memory_bytes"] / 1e9
        yield f"{found['multiprocessors']} multiprocessors, L2 {l2:.0f} MB, memory {memory:.0f} GB"
    if "clocks.sm" in found:
        names = (
            "driver_version",
            "clocks.sm",
            "clocks.max.sm",
            "clocks.mem",
            "power.draw",
            "power.limit",
            "temperature.gpu",
            "ecc.mode.current",
        )
        yield ", ".join(f"{name} {found[name]}" for name in names if name in found)


def _ceilings(rows: list[Row]) -> Iterator[str]:
    copies = [f"copy {row['gb_per_s']:.0f} GB/s" for row in rows if "gb_per_s" in row]
    matmuls = [f"{row['name']} {row['tflop_per_s']:.1f} TFLOP/s" for row in rows if "tflop_per_s" in row]
    if copies or matmuls:
        yield "ceilings: " + ", ".join([*copies, *matmuls])


def _correctness(rows: list[Row]) -> Iterator[str]:
    good, total = Counter(), Counter()
    for row in rows:
        if "backend" not in row:
            continue
        key = (row["backend"], row["dtype"])
        total[key] += 1
        good[key] += row["ok"]
    if total:
        yield "correctness: " + ", ".join(f"{backend} {dtype} {good[backend, dtype]} of {n}" for (backend, dtype), n in total.items())


def _primitives(rows: list[Row]) -> Iterator[str]:
    """us by CUDA graph; `least`: least possible time over time; `conv`: times cuDNN's bare convolution; host: us a call by calling."""
    named: dict[str, dict[str, dict[str, Row]]] = {}
    for row in rows:
        # Kernels for other batch sizes are compiled, not timed.
        if row.get("form") and row["backend"] != "torch" and " batch " not in row["shape"]:
            named.setdefault(row["backend"], {}).setdefault(row["shape"], {})[row["form"]] = row
    for backend, shapes in named.items():
        layers = {shape: forms for shape, forms in shapes.items() if forms.keys() & {"fwd", "bwd g"}}
        head = [f"{each} {word}" for each in ("fwd", "bwd") for word in ("us", "least", "/conv", "host")]
        lines = [(f"{backend}: conv", *head, "sums us", "dx us")]
        for shape, forms in layers.items():
            pair = (number(forms.get(form), "ms", ".1f", 1e3) for form in ("bwd sums", "bwd dx"))
            lines.append((shape, *_four(forms.get("fwd")), *_four(forms.get("bwd g")), *pair))
        if layers:
            yield from table(lines)
        lines = [(f"{backend}: norm", "", "us", "least", "GB/s", "host")]
        for shape, forms in shapes.items():
            for form, row in forms.items():
                if form.startswith("bn_"):
                    us, least, _, host = _four(row)
                    lines.append((shape, form, us, least, number(row, "gb_per_s", ".0f"), host))
        if lines[1:]:
            yield from table(lines)


def _four(row: Row | None) -> tuple[str, ...]:
    return number(row, "ms", ".1f", 1e3), number(row, "of_floor"), number(row, "over_conv"), number(row, "call_ms", ".1f", 1e3)


def _networks(rows: list[Row]) -> Iterator[str]:
    """What the layers of a network add up to, beside their bare convolutions."""
    times: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if "ms" in row and row.get("form") in ("fwd", "bwd g", "conv fwd", "conv bwd"):
            times.setdefault((row["backend"], row["form"]), {})[row["shape"]] = row
    for backend in dict.fromkeys(backend for backend, _ in times if backend != "torch"):
        for network in NETWORKS:
            sums = []
            for form, bare in (("fwd", "conv fwd"), ("bwd g", "conv bwd")):
                ours, theirs = times.get((backend, form), {}), times.get(("torch", bare), {})
                both = [shape for shape in ours.keys() & theirs.keys() if network in ours[shape]["networks"]]
                total, conv = (
                    sum(each[shape]["ms"]["median"] * each[shape]["networks"][network] for shape in both) for each in (ours, theirs)
                )
                if both:
                    layers = sum(ours[shape]["networks"][network] for shape in both)
                    sums.append(f"{form} {total:.2f} ms, bare {conv:.2f} ms ({layers} layers)")
            if sums:
                yield f"{backend}, layers of {network} measured: " + "; ".join(sums)


def _steps(part: str, rows: list[Row]) -> Iterator[str]:
    timed = {row["name"]: row for row in rows if "ms" in row}
    agreed = {row["name"].removeprefix("agreement "): row.get("agrees") for row in rows if row["name"].startswith("agreement ")}
    if not timed:
        return
    first = next(iter(timed.values()))
    yield f"{part}: training step of {first['model']}, batch {first['batch']}, {first['image_size']} px, {first['dtype']}"
    lines = [("", "ms", "q1 .. q3", "images/s", "fused speed", "agrees")]
    for name, row in timed.items():
        ms, graph = row["ms"], name.endswith(" graph")
        speed = "" if name.startswith("fused") else _speed(row, timed, graph)
        agrees = "" if name.startswith("eager") else {True: "yes", False: "NO", None: "-"}[agreed.get(name.removesuffix(" graph"))]
        lines.append((name, f"{ms['median']:.1f}", f"{ms['q1']:.1f} .. {ms['q3']:.1f}", f"{row['images_per_s']:.0f}", speed, agrees))
    yield from table(lines)


def _speed(row: Row, timed: dict[str, Row], graph: bool) -> str:
    """How many times faster fused is; ~ where the two did not take turns."""
    for beside, mark in ((row["beside"], ""), ({name: other["ms"]["median"] for name, other in timed.items()}, "~")):
        for name, median in beside.items():
            if name.startswith("fused") and name.endswith(" graph") == graph:
                return f"{mark}{row['ms']['median'] / median:.2f}x"
    return "-"


def _memory(rows: list[Row]) -> Iterator[str]:
    weighed = [row for row in rows if "saved_bytes" in row]
    if not weighed:
        return
    eager = {row["network"]: row for row in weighed if row["variant"] == "eager"}
    lines = [("memory", "", "saved MB", "peak MB", "saved/eager", "peak/eager")]
    for row in weighed:
        base = eager.get(row["network"])
        over = (f"{row[key] / base[key]:.3f}" if base else "-" for key in ("saved_bytes", "peak_bytes"))
        lines.append(
            (f"{row['model']}, {row['batch']}", row["variant"], *(f"{row[k] / 1e6:.1f}" for k in ("saved_bytes", "peak_bytes")), *over)
        )
    yield from table(lines)


def _tools(rows: list[Row]) -> Iterator[str]:
    said = [f"{row['name']} {row['errors']} errors" for row in rows if "errors" in row and isinstance(row["errors"], int)]
    said += [f"{row['name']}: see {row['file']}" for row in rows if "file" in row]
    if said:
        yield ", ".join(said)


def _failures(rows: Iterable[Row]) -> Iterator[str]:
    failed = [row for row in rows if not row["ok"]]
    if failed:
        yield f"{len(failed)} rows are not ok" + (f", of which the first {MOST_FAILURES}:" if len(failed) > MOST_FAILURES else ":")
    for row in failed[:MOST_FAILURES]:
        yield f"  {row['part']}: {row['name']}: {row['error'][:200]}"
