"""Whole units in one call each way: the bits of the composed primitives, refusals, failures."""

from itertools import chain, product

import pytest
import torch
from torch import Tensor

from fused_preact.backends import layout as layout_of
from fused_preact.backends.records import Conv, Layer, Unit
from fused_preact.ops import unit as composed
from fused_preact.ops.unit import Needs
from tests.cuda.kernels import needs_simulator
from tests.cuda.units import KINDS, C, Kind, Tensors, bwd, case_of, copies, fwd, plan_of, register_composed, tensors
from tests.ptxsim.simulator import simulator
from tests.testing.cases import in_turn, name_of

pytestmark = needs_simulator
kinds = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
FLOAT32 = pytest.param(torch.float32, marks=pytest.mark.tf32, id="tf32")

# What a mode changes of the i-th layer.
MODES = {
    "train": lambda i: {},
    "cumulative": lambda i: {"momentum": None},
    "untracked": lambda i: {"update": False},
    "frozen": lambda i: {"batch": False, "update": False},
    "second-frozen": lambda i: {"batch": False, "update": False} if i == 1 else {},
}


def in_mode(kind: Kind, mode: str) -> Kind:
    layers = tuple(layer._replace(**MODES[mode](i)) for i, layer in enumerate(kind.unit.layers))
    return kind._replace(unit=kind.unit._replace(layers=layers))


def backends(kind: Kind, t: Tensors) -> tuple[str, str]:
    """By whole units, and by primitives that compute the gradient of x as the unit does."""
    from fused_preact.backends import cuda
    from fused_preact.backends.cuda.unit_plan import two_dgrads

    assert cuda.why_not_unit(kind.unit, case_of(kind, t)) is None
    return "cuda", register_composed(two_dgrads(kind.unit, t.x.shape, t.params[2].shape, t.x.dtype))


def flat(result: tuple) -> list[Tensor | None]:
    return list(chain(*(part if isinstance(part, list | tuple) else (part,) for part in result)))


def assert_same(got: tuple, wanted: tuple) -> None:
    """Bits and strides."""
    for i, (a, b) in enumerate(zip(flat(got), flat(wanted), strict=True)):
        assert (a is None) == (b is None), i
        if a is not None:
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride()), i
            assert torch.equal(a, b), (i, (a - b).abs().max())


def every_kind():
    """Of kind, mode and dtype: every mode of every kind with one dtype, which take turns, and the other two slow tests."""
    dtypes = [*(pytest.param(dtype, id=name_of(dtype)) for dtype in (torch.bfloat16, torch.float16)), FLOAT32]
    for turn, (kind, mode) in enumerate(product(KINDS, MODES)):
        for number, dtype in enumerate(dtypes):
            marks = (*dtype.marks, *in_turn(turn + number, len(dtypes)))
            yield pytest.param(KINDS[kind], mode, *dtype.values, id=f"{kind}-{mode}-{dtype.id}", marks=marks)


@pytest.mark.parametrize(("kind", "mode", "dtype"), list(every_kind()))
def test_is_the_primitives(kind, mode, dtype):
    kind = in_mode(kind, mode)
    t = tensors(kind, dtype)
    own, other = copies(t), copies(t)
    whole, parts = backends(kind, t)
    got, wanted = fwd(whole, kind, own), fwd(parts, kind, other)
    assert_same(got, wanted)
    assert_same(own.buffers, other.buffers)
    bns, inner = got[2:]
    assert_same(bwd(whole, kind, t, bns, inner), bwd(parts, kind, t, bns, inner))


@kinds
def test_what_is_not_kept_is_computed_again(kind):
    t = tensors(kind)
    y, stats, bns, inner = fwd("cuda", kind, copies(t))
    assert_same(fwd("cuda", kind, copies(t), keep=False), (y, stats, bns, ()))
    assert_same(fwd("cuda", kind, copies(t), keep=False, want_stats=False), (y, None, bns, ()))
    again = composed.unit_recompute(kind.unit, t.x, bns, t.projection, t.params, t.dy, "cuda")
    assert_same((again,), (y,))
    assert_same(bwd("cuda", kind, t, bns, ()), bwd("cuda", kind, t, bns, inner))


# Of x, of gamma and beta, and of the weights of a unit's layers.
NEEDS = {
    "x": (True, "", ""),
    "no-x": (False, "012", "012"),
    "last-weight": (False, "", "2"),
    "middle": (False, "1", ""),
    "first": (False, "0", "0"),
    "first-norm": (False, "0", ""),
    "first-weight": (False, "", "0"),
    "norms": (True, "012", ""),
    "weights": (True, "", "012"),
}


def every_need():
    """Of kind, need and mode; the modes take turns."""
    for turn, (kind, need) in enumerate(product(KINDS, NEEDS)):
        for number, mode in enumerate(("train", "frozen")):
            yield pytest.param(KINDS[kind], mode, NEEDS[need], id=f"{kind}-{need}-{mode}", marks=in_turn(turn + number))


@pytest.mark.parametrize(("kind", "mode", "wanted"), list(every_need()))
def test_gradients_that_nobody_needs(kind, mode, wanted):
    kind = in_mode(kind, mode)
    t = tensors(kind)
    whole, parts = backends(kind, t)
    _, _, bns, inner = fwd(whole, kind, t)
    x, affine, weight = wanted
    layers = kind.unit.layers
    needs = Needs(
        x,
        kind.unit.projection is not None and bool(weight),
        tuple(layer.norm and str(i) in affine for i, layer in enumerate(layers)),
        tuple(str(i) in weight for i in range(len(layers))),
    )
    assert_same(bwd(whole, kind, t, bns, inner, needs), bwd(parts, kind, t, bns, inner, needs))


def odd_strides(t: Tensor) -> Tensor:
    return t.transpose(0, 1).contiguous().transpose(0, 1)


def at_an_odd_address(t: Tensor) -> Tensor:
    return torch.empty(t.numel() + 1, dtype=t.dtype)[1:].view_as(t).copy_(t)


LAYOUTS = {
    "nchw": lambda t: t._replace(x=t.x.contiguous(), dy=t.dy.contiguous()),
    "nhwc-weights": lambda t: t._replace(
        x=t.x.contiguous(), params=[p.contiguous(memory_format=torch.channels_last) if i % 3 == 2 else p for i, p in enumerate(t.params)]
    ),
    "odd-weights": lambda t: t._replace(
        params=[odd_strides(p) if i % 3 == 2 else p for i, p in enumerate(t.params)], projection=odd_strides(t.projection)
    ),
    "expanded-dy": lambda t: t._replace(dy=t.dy[:1, :1, :1, :1].expand_as(t.dy)),
    "float64-vectors": lambda t: t._replace(
        params=[p if i % 3 == 2 else p.double() for i, p in enumerate(t.params)], buffers=[b.double() for b in t.buffers]
    ),
    "bfloat16-vectors": lambda t: t._replace(
        params=[p if i % 3 == 2 else p.bfloat16() for i, p in enumerate(t.params)],
        buffers=[b.bfloat16() if b.is_floating_point() else b.int() for b in t.buffers],
    ),
    "odd-addresses": lambda t: t._replace(
        x=at_an_odd_address(t.x).contiguous(memory_format=torch.channels_last),
        params=[at_an_odd_address(p) for p in t.params],
        buffers=[at_an_odd_address(b) if b.dim() else b for b in t.buffers],
    ),
}


@pytest.mark.parametrize("mode", ["train", "cumulative", "frozen"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tensors_that_kernels_do_not_take(layout, mode):
    kind = in_mode(KINDS["transition"], mode)
    t = layout(tensors(kind))
    own, other = copies(t), copies(t)
    whole, parts = backends(kind, t)
    got = fwd(whole, kind, own)
    assert_same(got, fwd(parts, kind, other))
    assert_same(own.buffers, other.buffers)
    # Weights of any strides are the composed primitives' too only as their gradients are.
    found = bwd(whole, kind, t, got[2], got[3])
    usual = t._replace(params=[p if p is None else p.contiguous() for p in t.params], projection=t.projection.contiguous())
    wanted = bwd(parts, kind, usual, got[2], got[3])
    weights = iter(own.params[2::3])
    for a, b in zip(flat(found), flat(wanted), strict=True):
        assert torch.equal(a, b)
    assert [g.stride() for g in found[2] if g.dim() == 4] == [torch.empty_like(w).stride() for w in weights]
    assert found[0].stride() == layout_of.empty(t.x.shape, t.x.dtype, t.x, t.params[2]).stride()


def test_statistics_that_are_given():
    """In any number of tiles."""
    kind = KINDS["bottleneck"]
    t = tensors(kind)
    stats = torch.rand(5, 3, C) + 1
    whole, parts = backends(kind, t)
    for given in (stats, at_an_odd_address(stats)):
        assert_same(fwd(whole, kind, copies(t), stats=given), fwd(parts, kind, copies(t), stats=stats))


def test_same_bits_in_ten_runs():
    kind = KINDS["transition"]
    t = tensors(kind, shape=(4, 16, 16))
    first = None
    for _ in range(10):
        own = copies(t)
        y, stats, bns, inner = fwd("cuda", kind, own)
        got = [y, stats, bns, *own.buffers, *flat(bwd("cuda", kind, t, bns, inner))]
        first = first or got
        assert_same(got, first)


def test_same_bits_in_any_order_of_threads():
    from tests.ptxsim.simulator import FORWARD, RANDOM, REVERSE

    kind = KINDS["bottleneck"]
    t, first = tensors(kind), None
    for config in ({"order": REVERSE}, {"order": RANDOM, "seed": 7}, {"order": FORWARD}):
        simulator().clear(**config)
        y, stats, bns, inner = fwd("cuda", kind, copies(t))
        got = [y, stats, bns, *flat(bwd("cuda", kind, t, bns, inner))]
        first = first or got
        assert_same(got, first)


def refuse(**changes: object) -> str:
    from fused_preact.backends import cuda

    kind = changes.pop("kind", KINDS["transition"])
    case = case_of(kind, tensors(kind))
    return cuda.why_not_unit(changes.pop("unit", kind.unit), case._replace(**changes))


GROUPED = Layer(Conv((1, 1), (0, 0), (1, 1), 2))
UNIT = KINDS["bottleneck"].unit
REFUSED = {
    "pad": ("pad their shortcut", {"unit": UNIT._replace(shortcut="pad")}),
    "float32": ("float32 where torch allows tf32", {"dtype": torch.float32, "weight_dtype": torch.float32}),
    "two-dtypes": ("one dtype of 16 bits", {"weight_dtype": torch.float16}),
    "float64": ("not float64", {"dtype": torch.float64}),
    "groups": ("grouped", {"unit": Unit((GROUPED, *UNIT.layers[1:]))}),
    "deep": ("more than 3 layers", {"unit": Unit(UNIT.layers * 2)}),
    "bare": ("a norm missing", {"unit": Unit((Layer(), Layer(norm=False), Layer()))}),
    "empty": ("empty", {"x": (0, C, 8, 8)}),
    "shortcut": (
        "another shape",
        {"unit": UNIT._replace(layers=(Layer(Conv((2, 2))), *UNIT.layers[1:])), "weights": ((8, C, 1, 1), (8, 8, 3, 3), (C, 8, 1, 1))},
    ),
    "channels": ("no kernel for, such as layer 2", {"weights": ((8, C, 1, 1), (12, 8, 3, 3), (C, 12, 1, 1)), "unit": UNIT}),
    "projection": (
        "such as the projection",
        {
            "kind": KINDS["branch-projection"],
            "weights": ((16, C, 1, 1), (16, 16, 3, 3), (64, 16, 1, 1), (64, C, 9, 9)),
            "unit": KINDS["branch-projection"].unit._replace(projection=Conv((2, 2), (4, 4))),
        },
    ),
}


@pytest.mark.parametrize(("words", "changes"), REFUSED.values(), ids=REFUSED)
def test_refusals_are_sentences(words, changes):
    reason = refuse(**dict(changes))
    assert reason.startswith("the cuda backend "), reason
    assert words in reason


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("train", r"^layer 1 of a unit: bn_stats of 126 pixels x 32 channels failed on cuda:0: unspecified launch failure"),
        (
            "frozen",
            r"^the projection of a unit: bn_relu_conv2d_fwd of 2 images of 9x7, 1x1, 32 channels to 64 failed on cuda:0: unspecified",
        ),
    ],
)
def test_a_launch_that_fails_names_its_layer(mode, words, monkeypatch):
    """Here because memory is too small, which the simulator sees: that of the workspace, and of y."""
    from fused_preact.backends.cuda import unit

    kind = in_mode(KINDS["transition"], mode)
    t = tensors(kind)
    launch_at = unit.launch_at

    def with_less(call, like, *args, memory):
        reads, writes = memory()
        launch_at(call, like, *args, memory=lambda: (reads, writes | {"stats": None, "y": writes["y"][:1]}))

    monkeypatch.setattr(unit, "launch_at", with_less)
    with pytest.raises(RuntimeError, match=words):
        fwd("cuda", kind, copies(t))
    monkeypatch.undo()
    fwd("cuda", kind, copies(t))


def test_records_that_are_impossible():
    from fused_preact import _cuda

    kind = KINDS["bottleneck"]
    native = plan_of(kind, tensors(kind)).native
    with pytest.raises(ValueError, match="the unit's layers have other tensors"):
        native.fwd(0, 0, False, 0, 1, 0, 0, [1] * 12, [1, 1], 1, 1, 0, 1)
    with pytest.raises(ValueError, match="a tensor of the unit is missing"):
        native.bwd(0, 0, 0, 1, 1, 0, [1, 1], [1] * 3, 1, 0, [1] * 3, [1] * 3, [1] * 3, 1)
    grid = _cuda.Grid(1, 1, 1)
    with pytest.raises(ValueError, match="a unit's plan: expected a unit of one to three layers"):
        _cuda.Unit(_cuda.Dtype.bfloat16, [], False, None, 1, grid, grid, False)
