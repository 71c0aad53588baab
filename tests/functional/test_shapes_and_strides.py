"""Any shape and any strides: what plain torch accepts gives the same numbers here, what it refuses is refused in a sentence."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fused_preact as fp

small = st.integers(1, 4)
pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))


@st.composite
def views(draw, shape: tuple[int, ...]) -> torch.Tensor:
    """A float64 tensor of `shape` with strides of some kind: permuted, sliced out of a larger one, flipped in memory, expanded."""
    order = draw(st.permutations(range(4)))
    step = draw(st.tuples(*[st.integers(1, 2)] * 4))
    grown = [n * s + draw(st.integers(0, 1)) for n, s in zip(shape, step, strict=True)]
    expanded = [draw(st.booleans()) and draw(st.booleans()) for _ in shape]
    stored = [1 if e else n for n, e in zip(grown, expanded, strict=True)]
    seed = draw(st.integers(0, 2**16))
    memory = torch.randn([stored[i] for i in order], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    t = memory.permute([order.index(i) for i in range(4)]).expand(grown)
    for axis, (n, s) in enumerate(zip(shape, step, strict=True)):
        t = t.narrow(axis, 0, n * s) if n * s <= t.size(axis) else t
        t = t[(slice(None),) * axis + (slice(None, None, s),)]
    assert t.shape == shape
    return t


@st.composite
def layers(draw):
    groups = draw(st.integers(1, 3))
    n, c, k = draw(small), groups * draw(small), groups * draw(small)
    x = draw(views((n, c, draw(st.integers(1, 7)), draw(st.integers(1, 7)))))
    weight = draw(views((k, c // groups, *draw(pairs))))
    conv = {
        "stride": draw(pairs),
        "padding": draw(st.tuples(st.integers(0, 2), st.integers(0, 2))),
        "dilation": draw(pairs),
        "groups": groups,
    }
    return x, weight, conv, draw(st.booleans()), draw(st.booleans())


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layers())
def test_any_layer(layer):
    x, weight, conv, training, relu = layer
    c = x.size(1)
    gamma, beta, mean, var = torch.randn(c), torch.randn(c), torch.randn(c), torch.rand(c) + 0.5
    gamma, beta, mean, var = (v.double() for v in (gamma, beta, mean, var))

    def plain(x, weight, mean, var):
        v = F.batch_norm(x, mean, var, gamma, beta, training)
        return F.conv2d(F.relu(v) if relu else v, weight, None, **conv)

    def fused(x, weight, mean, var):
        return fp.bn_relu_conv2d(x, gamma, beta, mean, var, weight, training=training, relu=relu, **conv)

    def run(f):
        leaves = [t.detach().requires_grad_() for t in (x, weight)]
        buffers = mean.clone(), var.clone()
        y = f(*leaves, *buffers)
        # The gradient of sum() is expanded; of the square it is dense.
        return y, *torch.autograd.grad(y.sum() + y.square().sum(), leaves), *buffers

    try:
        wanted = run(plain)
    except (RuntimeError, ValueError):
        with pytest.raises((TypeError, ValueError)) as caught:
            run(fused)
        assert "\n" not in str(caught.value)
        return
    got = run(fused)
    # Where a dimension is 1, strides mean nothing and torch's own differ from kernel to kernel.
    assert got[0].stride() == wanted[0].stride() or 1 in (*x.shape, *got[0].shape)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)


@st.composite
def units(draw):
    kind = draw(st.sampled_from([fp.PreActBlock, fp.PreActBottleneck]))
    cin, c, stride = draw(st.integers(1, 9)), draw(small), draw(st.integers(1, 3))
    options = {
        "preact": draw(st.sampled_from(["branch", "shared", "none"])),
        "shortcut": draw(st.sampled_from(["auto", "projection", "pad"])),
        "memory": draw(st.sampled_from(["layer", "unit"])),
    }
    if kind is fp.PreActBottleneck:
        options["stride_at"] = draw(st.sampled_from(["1x1", "3x3"]))
    if options["shortcut"] == "pad" and c * kind.expansion < cin:
        cin = c * kind.expansion
    x = draw(views((draw(st.integers(2, 3)), cin, draw(st.integers(1, 6)), draw(st.integers(1, 6)))))
    return kind(cin, c, stride, **options).double().train(draw(st.booleans())), x


@settings(max_examples=100, deadline=None, derandomize=True)
@given(units())
def test_any_unit(case):
    unit, x = case
    leaves = [x.detach().requires_grad_(), *unit.parameters()]
    buffers = {name: b.clone() for name, b in unit.named_buffers()}
    y = unit(leaves[0])
    got = [y, *torch.autograd.grad(y.square().sum(), leaves), *(b.clone() for b in unit.buffers())]
    unit.load_state_dict(buffers, strict=False)
    y = unit.call_children(leaves[0])
    for a, b in zip(got, [y, *torch.autograd.grad(y.square().sum(), leaves), *unit.buffers()], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-8)
