"""What surrounds a fused model: compilers, exporters, transforms, autocast, checkpointing."""

import copy
import importlib.util
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import fused_preact as fp
from tests.convert.parts import Parts, backward
from tests.testing.numerics import assert_as_accurate


def parts(dtype: torch.dtype = torch.float64) -> Parts:
    m = Parts().to(dtype)
    for bn in m.modules():
        if isinstance(bn, nn.BatchNorm2d):
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias)
    return m


def image(n: int = 4, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(n, 3, 6, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)


def ran(m: nn.Module, run: Callable[[], Tensor]) -> dict[str, Tensor | None]:
    """A result, and the gradients and buffers after it."""
    y = backward(run())
    return {"y": y.detach(), **{name: p.grad for name, p in m.named_parameters()}, **dict(m.named_buffers())}


def assert_same(got: dict[str, Tensor | None], wanted: dict[str, Tensor | None]) -> None:
    for (name, b), a in zip(got.items(), wanted.values(), strict=True):
        torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9, msg=lambda text, name=name: f"{name}: {text}")


# --- torch.compile ---


class Blocks(nn.Module):
    """Blocks of a network that hand each other results of fused convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x


class Broken(Parts):
    """Its graph breaks between a norm and its convolution, and a part of it is not compiled at all."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        z = self.bn1(h)
        torch._dynamo.graph_break()
        y = self.conv1(F.relu(z)) + h
        found = self.not_compiled(y)
        z = found["y"]
        z += y
        return self.layer(3, z) + z

    @torch.compiler.disable
    def not_compiled(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": self.layer(2, x)}


class NormWithABreak(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        torch._dynamo.graph_break()
        return F.relu(y)


class OwnNorm(Blocks):
    def __init__(self) -> None:
        super().__init__()
        for block in self.blocks:
            block[0] = NormWithABreak(8)


COMPILED = {
    "whole": (Parts, lambda m: m, True, "inside one graph the model is the unfused one"),
    "first block": (Blocks, lambda m: m.blocks[0], True, "what it is handed is an ordinary tensor"),
    "middle block": (Blocks, lambda m: m.blocks[1], False, "sums are ordinary tensors, what lies between is not"),
    "one convolution": (Blocks, lambda m: m.blocks[1][2], False, "it is handed an activation"),
    "one norm": (Blocks, lambda m: m.blocks[1][0], False, "it is handed the result of a convolution, and not fused"),
    "with graph breaks": (Broken, lambda m: m, False, "the parts between the breaks are compiled, what is outside is fused"),
    "a break inside a norm": (OwnNorm, lambda m: m, False, "the norm's forward goes on uncompiled"),
}


@pytest.mark.compile
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize(("kind", "part", "fullgraph", "why"), COMPILED.values(), ids=COMPILED)
def test_compiled(kind, part, fullgraph, why, training):
    plain = kind().double().train(training)
    fused, x = fp.fuse(plain), image()
    part(fused).compile(backend="aot_eager", fullgraph=fullgraph)
    assert_same(ran(fused, lambda: fused(x)), ran(plain, lambda: plain(x)))


@pytest.mark.compile
def test_compiled_part_in_one_graph_is_refused():
    """Rather than quietly run without the compiler."""
    bn = fp.fuse(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)).double())[0]
    rest = torch.compile(lambda z: F.relu(z) * 2, backend="aot_eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported):
        rest(bn(image()))


# --- exporters and tracers ---


@pytest.mark.compile
@pytest.mark.parametrize("strict", [False, True], ids=["by-running", "strict"])
def test_export(strict):
    m = fp.fuse(parts()).eval()
    program = torch.export.export(m, (image(),), dynamic_shapes=({0: torch.export.Dim("n", min=2, max=64)},), strict=strict)
    assert "fused_preact" not in str(program.graph)
    x = image(7)
    torch.testing.assert_close(program.module()(x), m(x))


@pytest.mark.compile
@pytest.mark.parametrize("missing", [[name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]])
def test_onnx(missing, tmp_path):
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed")
    import onnxruntime

    m, x = fp.fuse(parts(torch.float32)).eval(), image(dtype=torch.float32)
    torch.onnx.export(m, (x,), tmp_path / "m.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), m(x).detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_jit_trace():
    m = fp.fuse(parts()).eval()
    x = image()
    torch.testing.assert_close(torch.jit.trace(m, image())(x), m(x))


def test_fx_symbolic_trace():
    m, x = fp.fuse(parts()), image()
    torch.testing.assert_close(torch.fx.symbolic_trace(m)(x), m(x))


# --- torch.func ---


def squares(m: nn.Module, x: Tensor) -> Callable[..., Tensor]:
    return lambda parameters: torch.func.functional_call(m, parameters, x).square().mean()


TRANSFORMS = {
    "grad": lambda m, x: torch.func.grad(squares(m, x))({name: p.detach() for name, p in m.named_parameters()}),
    "vmap": lambda m, x: torch.func.vmap(lambda image: m(image[None])[0])(x),
    "per-sample gradients": lambda m, x: torch.func.vmap(torch.func.grad(lambda image: m(image[None]).square().mean()))(x),
    "jvp": lambda m, x: torch.func.jvp(m, (x,), (torch.ones_like(x),)),
    "vjp": lambda m, x: torch.func.vjp(m, x)[1](torch.ones_like(m(x))),
    "jacrev": lambda m, x: torch.func.jacrev(lambda x: m(x).mean((1, 2, 3)))(x),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_transforms_see_the_unfused_model(transform):
    plain = parts().eval()
    x = image()
    torch.testing.assert_close(transform(fp.fuse(plain), x), transform(plain, x))


def test_functional_call_with_other_parameters():
    plain = parts()
    fused, x = fp.fuse(plain), image()
    grads = []
    for m in (plain, fused):
        other = {name: (p.detach() * 1.5).requires_grad_() for name, p in m.named_parameters() if not name.startswith("biased")}
        y = torch.func.functional_call(m, other, x)
        grads.append(torch.autograd.grad(y.square().sum(), [p for name, p in other.items() if not name.startswith("proj")]))
    torch.testing.assert_close(*grads)


REFUSED = {
    "batches of gradients": (lambda y, x: torch.autograd.grad(y, x, torch.ones(2, *y.shape), is_grads_batched=True), "batched gradients"),
    "second derivatives": (lambda y, x: torch.autograd.grad(y.sum(), x, create_graph=True)[0].sum().backward(), "can't be differentiated"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call, message):
    x = image().requires_grad_()
    y = fp.fuse(parts())(x)
    with pytest.raises(RuntimeError, match=message):
        call(y, x)


def test_a_transform_of_what_was_computed_outside_is_refused_in_words():
    m = fp.fuse(parts())
    y = m.layer(1, m.stem(image()))
    with pytest.raises(RuntimeError, match="fused_preact"):
        torch.func.grad(lambda s: (y * s).sum())(torch.tensor(2.0, dtype=torch.float64))


# --- autocast ---


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_is_as_accurate_as_eager(dtype):
    plain, x = parts(torch.float32), image(16, torch.float32)
    results = []
    for m, to in ((fp.fuse(plain), torch.float32), (copy.deepcopy(plain), torch.float32), (copy.deepcopy(plain).double(), torch.float64)):
        with torch.autocast("cpu", dtype=dtype, enabled=to == torch.float32):
            y = m(x.to(to))
        results.append(ran(m, lambda y=y: y))
    for name, got in results[0].items():
        if got is not None and got.is_floating_point():
            eager = results[1][name]
            # Everything went through numbers of autocast's dtype.
            assert_as_accurate(name, got.to(dtype), eager.to(dtype), results[2][name], kinds=("RMS",))
            assert got.dtype == eager.dtype


AUTOCAST_PARTS = {
    "norm inside, convolution outside": lambda m, h: m.conv1(F.relu(inside(lambda: m.bn1(h))).float()),
    "norm outside, convolution inside": lambda m, h, z=None: inside(lambda: m.conv1(F.relu(m.bn1(h)))),
    "called inside, used outside": lambda m, h: inside(lambda: m.layer(1, h)) + h,
    "called outside, used inside": lambda m, h: inside(lambda y: m.layer(2, y) + h, m.layer(1, h)),
    "half of a unit": lambda m, h: m.layer(2, inside(lambda: m.layer(1, h)).float()) + h,
}


def inside(run: Callable[..., Tensor], *args: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return run(*args)


@pytest.mark.parametrize("run", AUTOCAST_PARTS.values(), ids=AUTOCAST_PARTS)
def test_autocast_of_a_part(run):
    """Autocast is what it was where a function was called."""
    plain, x = parts(torch.float32), image(16, torch.float32)
    fused = fp.fuse(plain)
    got, wanted = (run(m, m.stem(x)) for m in (fused, plain))
    assert got.dtype == wanted.dtype
    torch.testing.assert_close(got, wanted, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")], ids=["inf", "nan"])
def test_scaler_sees_what_overflows(bad):
    m, x = fp.fuse(parts(torch.float32)), image(dtype=torch.float32)
    optimizer, scaler = torch.optim.SGD(m.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.clone() for p in m.parameters()]
    y = m(x)
    scaler.scale(torch.cat([y.flatten(), y.sum()[None] * bad]).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), before, strict=True))


# --- activation checkpointing ---

BORDERS = "nothing is saved before the convolution outside, so nothing is run again and the running statistics move once"
CHECKPOINTED = {
    "a unit": (lambda m, h, again: m.layer(3, again(m.unit, h)), "the usual way", None),
    "one layer": (lambda m, h, again: m.layer(2, again(lambda h: m.layer(1, h), h)) + h, "half of a unit", None),
    "a layer after another": (lambda m, h, again: again(lambda y: m.layer(2, y), m.layer(1, h)) + h, "its argument is not computed", None),
    "the sum": (lambda m, h, again: m.layer(2, again(torch.add, m.layer(1, h), h)), "the argument is used first inside", None),
    "the convolution": (lambda m, h, again: again(m.conv1, F.relu(m.bn1(h))) + h, "norm and ReLU outside", None),
    "the ReLU": (lambda m, h, again: m.conv1(again(F.relu, m.bn1(h))) + h, "norm and convolution outside", None),
    "norm and ReLU": (lambda m, h, again: m.conv1(again(lambda h: F.relu(m.bn1(h)), h)) + h, "convolution outside", BORDERS),
    "convolution and next norm": (
        lambda m, h, again: m.conv2(again(lambda z: F.relu(m.bn2(m.conv1(z))), F.relu(m.bn1(h)))) + h,
        "begins and ends inside a triple",
        BORDERS,
    ),
    "norm and ReLU, then what they precede": (
        lambda m, h, again: again(lambda z: m.conv1(z) + z[:, :1], again(lambda h: F.relu(m.bn1(h)), h)),
        "the convolution's region is the first that wants the activation itself",
        BORDERS,
    ),
}


@pytest.mark.parametrize("reentrant", [False, True], ids=["", "reentrant"])
@pytest.mark.parametrize(("run", "why", "border"), CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_checkpointed(run, why, border, reentrant):
    """The gradients and running statistics of the unfused model; those of a norm at the end of a region, see `border`, may differ."""
    plain = parts()
    fused, x = fp.fuse(plain), image()
    got, wanted = (
        ran(m, lambda m=m: run(m, m.stem(x), lambda f, *args: checkpoint(f, *args, use_reentrant=reentrant))) for m in (fused, plain)
    )
    if border and not reentrant:
        moved = {name for name in got if name.startswith("bn")} & {name for name, _ in plain.named_buffers()}
        assert any(not torch.equal(got[name], wanted[name]) for name in moved), "the docs say that they move once"
        got, wanted = ({name: t for name, t in results.items() if name not in moved} for results in (got, wanted))
    assert_same(got, wanted)


def test_results_are_pickled_as_tensors():
    """As by loaders, queues and torch.save."""
    with torch.no_grad():
        m = fp.fuse(parts())
        z = F.relu(m.bn1(m.stem(image())))
        other = pickle.loads(pickle.dumps(z))
    assert type(other) is Tensor
    torch.testing.assert_close(other, z + 0)
