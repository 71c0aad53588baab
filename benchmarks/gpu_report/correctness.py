"""Every primitive in every form against float64, by the accuracy rule of the tests; and the same bits in three runs."""

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu_report.calls import Call, Inputs
from benchmarks.gpu_report.child import Job
from fused_preact.backends import eager
from fused_preact.bench.accuracy import error, objection
from fused_preact.models.shapes import LAYER_SHAPES, Layer

RUNS = 3
# Ten bits of mantissa.
TF32_EPS = 2.0**-10
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16, "tf32": torch.float32}
RESULTS = {
    "bn_stats": ("stats",),
    "bn_merge": ("stats",),
    "bn_finalize": ("bn",),
    "bn_finalize_update": ("bn", "running_mean", "running_var", "num_batches_tracked"),
    "bn_coeffs": ("coeffs", "dgamma", "dbeta"),
    "bn_relu": ("z",),
    "bn_relu_bwd": ("g", "sums"),
    "bn_bwd": ("dx",),
    "bn_relu_conv2d_fwd": ("y", "stats"),
    "bn_relu_conv2d_bwd": ("out", "sums", "dweight", "dbias", "dy"),
}
MOVED = RESULTS["bn_finalize_update"][1:]


class Checked(NamedTuple):
    """A layer of the table with a small batch, and why it is there; x is `offset` standard deviations off zero."""

    id: str
    batch: int
    why: str
    offset: float = 0.5


CASES = (
    Checked("16x16-3x3-s1-32px", 5, "the middle of a bottleneck; few channels"),
    Checked("64x16-1x1-s1-32px", 12, "its first layer; three tiles of statistics"),
    Checked("16x64-1x1-s1-32px", 3, "its last layer"),
    Checked("64x128-1x1-s2-32px", 2, "a strided projection"),
    Checked("128x128-3x3-s2-56px", 2, "a strided 3x3"),
    Checked("256x64-1x1-s1-8px", 7, "a mean far from zero: cancellation", offset=30.0),
    Checked("512x512-3x3-s1-7px", 3, "long sums; odd sides"),
    Checked("1024x256-1x1-s1-14px", 1, "one image"),
)
LAYERS = {shape.id: shape.layer for shape in LAYER_SHAPES}


def run(job: Job) -> None:
    # cuBLAS reads it when it starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Algorithms chosen for these sizes would be used once.
    torch.backends.cudnn.benchmark = False
    cases = CASES[:2] if job.dry or job.label else CASES
    tasks = [(dtype, case) for dtype in DTYPES for case in cases]
    if job.label:
        tasks = tasks[: len(cases)]
    elif job.dry:
        tasks = [(dtype, case) for dtype, case in tasks if dtype == "bfloat16" or case is CASES[0]]
    with poisoned():
        for dtype, case in job.shared(tasks):
            # A sanitizer watches: the reference must not run under it.
            _case(job, dtype, case, "cpu" if job.label else job.device)


def _case(job: Job, dtype: str, case: Checked, reference: str) -> None:
    layer = LAYERS[case.id]
    if job.dry:
        layer = Layer(layer.in_channels, layer.out_channels, layer.kernel, layer.stride, 6)
    # Convolutions on the reference's device use no tf32 unless it is what is checked.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    inputs = job.attempt(f"{dtype} {case.id}", lambda: Inputs(layer, case.batch, DTYPES[dtype], job.device, offset=case.offset))
    if inputs is None:
        return
    eps = TF32_EPS if dtype == "tf32" else None
    for backend_name, backend in job.backends().items():
        facts = {"dtype": dtype, "layer": case.id, "backend": backend_name}
        if not job.usable(f"{dtype} {case.id} {backend_name}", backend_name, backend, inputs.case(), dtype=dtype, layer=case.id):
            continue
        # A norm has no dots.
        norms = {} if dtype == "tf32" else inputs.norms()
        for form, call in (inputs.convolutions() | norms).items():
            work = checking(call, backend, eps, reference, 1 if job.label else RUNS)
            job.measure(f"{dtype} {case.id} {backend_name} {form}", work, primitive=call.primitive, **facts)


def checking(call: Call, backend: Any, eps: float | None, reference: str, runs: int = RUNS) -> Callable[[], dict[str, Any]]:
    """What `measure` calls: the largest errors, ours and eager's, of each result; and the first objection, if there is one."""

    def check() -> dict[str, Any]:
        first, *others = (results(call, backend) for _ in range(runs))
        theirs = results(_moved(call, lambda t: t.to(reference)), eager)
        truth = results(_moved(call, lambda t: t.to(reference).double() if t.is_floating_point() else t.to(reference)), eager)
        errors, objections = {}, []
        for name in RESULTS[call.primitive]:
            objections += _misshapen(name, first[name], theirs[name])
            if not all(_same(first[name], other[name]) for other in others):
                objections.append(f"{name} differs between runs")
        ours = _compared(call, first, first, reference)
        beside = _compared(call, theirs, first, reference)
        wanted = _compared(call, truth, first, reference, torch.float64)
        for name in wanted:
            got = ours.get(name)
            reason = objection(name, got, beside.get(name), wanted[name], eps)
            if reason:
                objections.append(reason)
            if got is not None and wanted[name].numel() and got.shape == wanted[name].shape:
                errors[name] = [error(got, wanted[name])[0], error(beside[name], wanted[name])[0]]
        return {"errors": errors, "error": "; ".join(objections[:3])} if objections else {"errors": errors}

    return check


def results(call: Call, backend: Any) -> dict[str, Tensor | None]:
    """The results of one call by name, what it moved in place included. It gets copies, and may write to nothing else."""
    copies = _moved(call, torch.clone)
    named = list(copies(backend))
    given, kept = call.named(), copies.named()
    moved = MOVED if call.primitive == "bn_finalize_update" else ()
    for name, tensor in given.items():
        if isinstance(tensor, Tensor) and name not in moved and not _same(tensor, kept[name]):
            raise AssertionError(f"{call.primitive} wrote to its input {name}")
    return dict(zip(RESULTS[call.primitive], [*named, *(kept[name] for name in moved)], strict=True))


def _moved(call: Call, move: Callable[[Tensor], Tensor]) -> Call:
    return Call(call.primitive, tuple(move(arg) if isinstance(arg, Tensor) else arg for arg in call.args))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b if a is None or b is None else torch.equal(a, b)


def _misshapen(name: str, got: Tensor | None, wanted: Tensor | None) -> list[str]:
    """Shape, dtype and strides are promised by the fakes, and eager keeps the promise."""
    if got is None or wanted is None:
        return []
    pairs = {
        "shape": (tuple(got.shape), tuple(wanted.shape)),
        "dtype": (got.dtype, wanted.dtype),
        "strides": (got.stride(), wanted.stride()),
    }
    return [f"{name} has {what} {mine}, expected {theirs}" for what, (mine, theirs) in pairs.items() if mine != theirs]


def _compared(
    call: Call, found: dict[str, Tensor | None], ours: dict[str, Tensor | None], device: str, dtype: torch.dtype | None = None
) -> dict[str, Tensor | None]:
    """Results as they can be compared: tiles merged, vectors one by one, on one device."""
    out: dict[str, Tensor | None] = {}
    for name, tensor in found.items():
        if tensor is None:
            out[name] = None
            continue
        tensor = tensor.to(device)
        if name == "stats":
            if call.primitive == "bn_relu_conv2d_fwd" and found is not ours:
                # Statistics of y as the backend under test stored it.
                y = ours["y"].to(device)
                tensor = eager.bn_stats(y if dtype is None else y.to(dtype))
            merged = eager.bn_merge(tensor.double())[0].to(tensor.dtype)
            out |= dict(zip(("count", "mean", "m2"), merged, strict=True))
        elif name == "sums":
            out |= dict(zip(("sum g", "sum g*xhat"), tensor.sum(0), strict=True))
        elif name == "bn":
            out |= dict(zip(("mean", "invstd", "scale", "beta", "1/M"), tensor, strict=True))
        elif name == "coeffs":
            out |= dict(zip(("a", "b", "mean", "c"), tensor, strict=True))
        else:
            out[name] = tensor if tensor.is_floating_point() else tensor.to(dtype or torch.float32)
    return out


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """torch.empty and its kin give NaN, so that an output left unwritten is seen."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    fill, torch.utils.deterministic.fill_uninitialized_memory = torch.utils.deterministic.fill_uninitialized_memory, True
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.use_deterministic_algorithms(False)
