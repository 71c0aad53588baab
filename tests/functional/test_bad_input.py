"""Bad arguments: one sentence that names the argument, what was expected and what came."""

import pytest
import torch
from torch import nn

import fused_preact as fp
from fused_preact import PreActBlock, PreActBottleneck, PreActConv2d, PreActSequential
from fused_preact.functional import bn_relu
from fused_preact.models import create_model
from fused_preact.modules import bn_relu_of

X, W = torch.randn(2, 4, 6, 6), torch.randn(3, 4, 3, 3)
V = torch.ones(4)


def call(x=X, gamma=V, beta=V, mean=None, var=None, weight=W, bias=None, **options):
    return fp.bn_relu_conv2d(x, gamma, beta, mean, var, weight, bias, **{"training": True, **options})


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": X[0]}, ValueError, r"x must have 4 dimensions \(N, C, H, W\), got shape \(4, 6, 6\)"),
        ({"x": [1.0]}, TypeError, "x must be a Tensor, got list"),
        ({"x": X.long()}, TypeError, "x must be float32, bfloat16, float16 or float64, got torch.int64"),
        ({"x": X.to(torch.complex64)}, TypeError, "x must be .* got torch.complex64"),
        ({"x": X[:0]}, ValueError, r"x must hold at least one image .* got input size \(0, 4, 6, 6\)"),
        ({"x": X[:1, :, :1, :1], "weight": W[..., :1, :1]}, ValueError, "Expected more than 1 value per channel when training"),
        ({"gamma": torch.ones(5)}, ValueError, r"bn_weight must have shape \(4,\), one element per channel of x, got \(5,\)"),
        ({"beta": torch.ones(4, dtype=torch.int32)}, TypeError, "bn_bias must have a floating dtype, got torch.int32"),
        ({"mean": V}, ValueError, "running_mean and running_var must be given together"),
        ({"weight": W[:, :3]}, ValueError, r"conv_weight must take the 4 channels of x in 1 group\(s\), got shape \(3, 3, 3, 3\)"),
        ({"weight": W[0]}, ValueError, r"conv_weight must have 4 dimensions .* got \(4, 3, 3\)"),
        ({"weight": W.double()}, TypeError, "conv_weight must have the dtype of x, torch.float32, .* got torch.float64"),
        ({"weight": W.to("meta")}, ValueError, "conv_weight must be on the device of x, cpu, got meta"),
        ({"weight": torch.randn(3, 4, 9, 9)}, ValueError, r"x must be at least as large as the dilated kernel .* got shape \(2, 4, 6, 6\)"),
        ({"bias": torch.ones(4)}, ValueError, r"conv_bias must have shape \(3,\), got \(4,\)"),
        ({"bias": torch.ones(3).double()}, TypeError, "conv_bias must have the dtype of x"),
        ({"residual": torch.ones(2, 3, 6, 6)}, ValueError, r"residual must have shape \(2, 3, 4, 4\), got \(2, 3, 6, 6\)"),
        ({"groups": 3}, ValueError, "groups must divide the channels of x, 4, and of conv_weight, 3, got 3"),
        ({"groups": 0}, ValueError, "groups must be a whole number of at least 1, got 0"),
        ({"padding": -1}, ValueError, "padding must be a whole number of at least 0 or two of them, got -1"),
        ({"padding": "same"}, ValueError, "padding must be a whole number of at least 0 or two of them, got 'same'"),
        ({"stride": (1, 2, 3)}, ValueError, r"stride must be .* got \(1, 2, 3\)"),
        ({"stride": 1.5}, ValueError, "stride must be .* got 1.5"),
        ({"dilation": 0}, ValueError, "dilation must be a whole number of at least 1"),
        ({"x": X[:, :, :0]}, ValueError, r"x must have at least one channel and one pixel, got shape \(2, 4, 0, 6\)"),
        ({"x": X.to_sparse()}, TypeError, "x must be a dense tensor, got layout torch.sparse_coo"),
        ({"gamma": [1.0] * 4}, TypeError, "bn_weight must be a Tensor or None, got list"),
        ({"stats": torch.ones(1, 3, 8)}, ValueError, r"stats must have shape \(tiles, 3, 4\), .* got \(1, 3, 8\)"),
        ({"stats": torch.ones(1, 3, 4).double()}, TypeError, "stats must have dtype torch.float32, .* got torch.float64"),
        ({"stats": "none"}, ValueError, "stats must have shape .* got str"),
        ({"eps": -1.0}, ValueError, "eps must be a positive number, got -1.0"),
        ({"eps": "x"}, ValueError, "eps must be a positive number, got 'x'"),
        ({"momentum": "a"}, TypeError, "momentum must be a number or None, got 'a'"),
        ({"groups": True}, ValueError, "groups must be a whole number of at least 1, got True"),
        ({"mean": V, "var": V, "num_batches_tracked": 3}, TypeError, "num_batches_tracked must be a Tensor or None, got int"),
        ({"mean": V, "var": V, "momentum": None}, ValueError, "num_batches_tracked must be given when momentum is None"),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
def test_bn_relu_conv2d_refuses(arguments, error, words):
    with pytest.raises(error, match=words) as caught:
        call(**arguments)
    assert "\n" not in str(caught.value)


def test_running_statistics_do_not_move_when_refused():
    mean, var = torch.zeros(4), torch.ones(4)
    with pytest.raises(ValueError, match="residual"):
        call(mean=mean, var=var, residual=torch.ones(1))
    assert not mean.any()


@pytest.mark.parametrize("module", [PreActBottleneck(8, 2), PreActBlock(8, 8)], ids=["bottleneck", "block"])
@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (torch.randn(8, 4, 4), ValueError, "x must have 4 dimensions"),
        (torch.randn(2, 7, 4, 4), ValueError, "conv1 must take the 7 channels of its input|bn1 must have shape"),
        (torch.randn(2, 8, 4, 4).double(), TypeError, "conv1 must have the dtype of x, torch.float64"),
        (torch.randn(2, 8, 4, 4, device="meta"), ValueError, "bn1 must be on the device of x, meta, got cpu"),
        (torch.ones(2, 8, 4, 4, dtype=torch.int32), TypeError, "x must be float32"),
        (torch.randn(1, 8, 1, 1), ValueError, "Expected more than 1 value per channel"),
        (torch.randn(0, 8, 4, 4), ValueError, "x must hold at least one image"),
    ],
    ids=["rank", "channels", "dtype", "device", "integers", "one value", "empty"],
)
def test_units_refuse(x, error, words, module):
    with pytest.raises(error, match=words):
        module(x)


@pytest.mark.parametrize(
    ("replace", "words"),
    [
        ({"bn2": nn.BatchNorm2d(1)}, r"bn2 must have shape \(2,\), one element per channel of its input, got \(1,\)"),
        ({"bn1": nn.BatchNorm2d(7)}, r"bn1 must have shape \(8,\), .* got \(7,\)"),
        ({"bn3": nn.BatchNorm2d(1, affine=False).eval()}, r"bn3 must have shape \(2,\), .* got \(1,\)"),
        (
            {"conv2": nn.Conv2d(3, 2, 3, padding=1, bias=False)},
            r"conv2 must take the 2 channels of its input in 1 group\(s\), got shape \(2, 3, 3, 3\)",
        ),
    ],
    ids=["one channel", "first norm", "frozen", "conv"],
)
def test_children_that_do_not_fit(replace, words):
    unit = PreActBottleneck(8, 2)
    for name, child in replace.items():
        setattr(unit, name, child)
    with pytest.raises(ValueError, match=words):
        unit(torch.randn(2, 8, 4, 4))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda u: u.conv2.bfloat16(), TypeError, "conv2 must have the dtype of x, torch.float32, outside autocast, got torch.bfloat16"),
        (lambda u: u.downsample.double(), TypeError, "downsample must have the dtype of x"),
        (lambda u: u.conv2.to("meta"), ValueError, "conv2 must be on the device of x, cpu, got meta"),
        (lambda u: u.bn1.to("meta"), ValueError, "bn1 must be on the device of x, cpu, got meta"),
        (lambda u: u.eval().bn3.to("meta"), ValueError, "bn3 must be on the device of x, cpu, got meta"),
        (lambda u: setattr(u, "downsample", nn.Conv2d(8, 3, 1, 2, bias=False)), ValueError, "downsample must give the 16 channels"),
        (lambda u: setattr(u, "downsample", nn.Conv2d(5, 16, 1, 2, bias=False)), ValueError, "downsample must take the 8 channels of x"),
    ],
)
def test_parts_of_a_unit_with_other_dtypes_and_devices(change, error, words):
    unit = PreActBottleneck(8, 4, 2, preact="shared")
    change(unit)
    with pytest.raises(error, match=words):
        unit(torch.randn(2, 8, 4, 4))


def test_a_unit_needs_parts():
    with pytest.raises(ValueError, match="parts must hold at least one unit, got none"):
        fp.preact_unit(torch.randn(2, 4, 4, 4))


def test_the_tail_checks_its_input():
    """relu(bn(x)) at the end of a network: one value per channel has no statistics."""
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        bn_relu_of(nn.BatchNorm2d(4), torch.randn(1, 4, 1, 1))
    with pytest.raises(ValueError, match="x must have 4 dimensions"):
        bn_relu_of(nn.BatchNorm2d(4), torch.randn(4, 4))
    with pytest.raises(ValueError, match="running_mean and running_var must be given together"):
        bn_relu(X, V, V, V, None, training=False)
    with pytest.raises(ValueError, match="eps must be a positive number, got 0"):
        bn_relu(X, V, V, None, None, training=True, eps=0)


@pytest.mark.parametrize("module", [PreActConv2d(4, 4, 1), PreActBlock(4, 4), PreActBottleneck(4, 1, memory="unit")], ids=repr)
def test_batched_gradients_are_refused(module):
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    y = module(x)
    with pytest.raises(RuntimeError, match=r"batched gradients \(is_grads_batched, vmap\) are not supported"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)


def test_batched_gradients_of_the_tail_are_refused():
    x = torch.randn(2, 4, 4, 4, requires_grad=True)
    y = bn_relu_of(nn.BatchNorm2d(4), x)
    with pytest.raises(RuntimeError, match="batched gradients"):
        torch.autograd.grad(y, x, torch.ones(3, *y.shape), is_grads_batched=True)


def replaced(unit, i, value):
    """The parts of `unit` with one of its params replaced."""
    parts = unit.read().tensors
    params = list(parts.params)
    params[i] = value
    return parts._replace(params=params)


BLOCK = PreActBlock(4, 4)


@pytest.mark.parametrize(
    ("parts", "error", "words"),
    [
        (replaced(BLOCK, 0, torch.ones(4, dtype=torch.int32)), TypeError, "bn1 must have a floating dtype, got torch.int32"),
        (replaced(BLOCK, 1, torch.ones(4, 1)), ValueError, r"bn1 must have shape \(4,\), .* got \(4, 1\)"),
        (replaced(BLOCK, 3, [1.0] * 4), TypeError, "bn2 must be a Tensor or None, got list"),
        (replaced(BLOCK, 5, torch.ones(4)), ValueError, r"conv2 must have 4 dimensions \(K, C/groups, R, S\), got \(4,\)"),
        (replaced(BLOCK, 2, None), ValueError, "conv1 must have 4 dimensions .* got NoneType"),
        (
            BLOCK.read().tensors._replace(projection=torch.ones(4, 4, 1, 1)),
            ValueError,
            "projection must be given for shortcut 'projection'",
        ),
        (PreActBlock(4, 8).read().tensors._replace(projection=None), ValueError, "projection must be given for shortcut 'projection'"),
        (
            replaced(BLOCK, 5, torch.ones(8, 4, 3, 3)),
            ValueError,
            "shortcut 'identity' needs as many channels out as in, got 4 in and 8 out",
        ),
        (
            replaced(PreActBlock(4, 6, shortcut="pad"), 5, torch.ones(3, 6, 3, 3)),
            ValueError,
            "shortcut 'pad' needs at least as many channels out as in, got 4 in and 3 out",
        ),
        (PreActBlock(4, 4, momentum="a").read().tensors, TypeError, "momentum of bn1 must be a number or None, got 'a'"),
        (PreActBlock(4, 4, eps="b").read().tensors, ValueError, "eps of bn1 must be a positive number, got 'b'"),
        (PreActBlock(4, 4, eps=-1.0).read().tensors, ValueError, "eps of bn1 must be a positive number, got -1.0"),
    ],
)
def test_preact_unit_refuses(parts, error, words):
    with pytest.raises(error, match=words):
        fp.preact_unit(torch.randn(2, 4, 6, 6), parts)
    assert BLOCK.bn1.num_batches_tracked == 0, "nothing has moved"


def test_memory_of_the_function_is_checked():
    unit = PreActBlock(4, 4)
    with pytest.raises(ValueError, match="memory must be one of 'layer', 'unit', 'segment', got 'all'"):
        fp.preact_unit(torch.randn(2, 4, 4, 4), unit.read().tensors, memory="all")


def test_expected_more_than_one_value_inside_a_unit():
    """One image of 2x2 is enough for the first norm, and not for the one after the stride; nothing has moved by then."""
    unit = PreActBottleneck(8, 2, 2)
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training, got input size"):
        unit(torch.randn(1, 8, 2, 2))
    assert unit.bn1.num_batches_tracked == 0


def test_empty_batch_in_eval_is_empty():
    unit = PreActBottleneck(8, 2, 2, preact="shared").eval()
    assert unit(torch.randn(0, 8, 4, 4)).shape == (0, 8, 2, 2)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: PreActBlock(4, 8, shortcut="identity"),
            "shortcut 'identity' needs stride 1 and as many channels out as in, got stride 1, 4 in",
        ),
        (lambda: PreActBlock(8, 4, shortcut="pad"), "shortcut 'pad' needs at least as many channels out as in, got 8 in and 4 out"),
        (lambda: PreActBlock(4, 4, shortcut="skip"), "shortcut must be one of 'auto', .* got 'skip'"),
        (lambda: PreActBlock(4, 4, preact="both"), "preact must be one of 'branch', 'shared', 'none', got 'both'"),
        (lambda: PreActBlock(4, 4, memory="none"), "memory must be one of 'layer', 'unit', 'segment', got 'none'"),
        (lambda: PreActBottleneck(4, 4, stride_at="2x2"), "stride_at must be one of '3x3', '1x1', got '2x2'"),
        (lambda: PreActSequential(PreActBlock(4, 4), segment=0), "segment must be a whole number of at least 1, got 0"),
        (lambda: create_model("preact_resnet163"), "unknown model 'preact_resnet163'; did you mean 'preact_resnet164'?"),
        (lambda: fp.use_backend("cuba").__enter__(), "unknown backend 'cuba'; did you mean 'cuda'?"),
    ],
)
def test_constructors_refuse(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_unusable_backend_says_why():
    missing = {name: why for name, why in fp.available_backends().items() if why is not None}
    for name, why in missing.items():
        with pytest.raises(ValueError, match="is not usable") as caught, fp.use_backend(name):
            pass
        assert why in str(caught.value)


def test_refusal_of_the_insisted_backend_is_its_sentence():
    from types import SimpleNamespace

    from fused_preact.backends import register

    register("picky", SimpleNamespace(why_not=lambda case: f"needs an even number of channels, got {case.x[1]}"))
    with fp.use_backend("picky"), pytest.raises(fp.BackendRefusal, match="'picky' can't run this layer: needs an even number"):
        PreActConv2d(3, 3, 1)(torch.randn(2, 3, 4, 4))
