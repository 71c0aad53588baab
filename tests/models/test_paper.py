"""The paper's units: the formulas of figures 2 and 4 written out again, counts by hand, and what `fuse` makes of them."""

import pytest
import torch
import torch.nn.functional as F

import fused_preact as fp
from fused_preact.convert.norms import FusedNorm
from fused_preact.models import create_model, reference_model
from fused_preact.models.paper import ORDERS
from fused_preact.models.paper_shortcuts import JOINS, Dropout, Gate
from tests.modules.test_units import assert_same, randomise, results

D = torch.float64
SCALED = {"shortcut": "constant_scaling"}
SHORTCUTS = {
    "identity": {"shortcut": "identity"},
    "plain-net": SCALED | {"shortcut_scale": 0},
    "plain-net-scaled": SCALED | {"shortcut_scale": 0, "branch_scale": 0.5},
    "shortcut-scaled": SCALED | {"shortcut_scale": 0.5},
    "both-scaled": SCALED | {"shortcut_scale": 0.5, "branch_scale": 0.25},
    "exclusive": {"shortcut": "exclusive_gating", "gate_bias": -1.5},
    "shortcut-only": {"shortcut": "shortcut_only_gating", "gate_bias": -1.5},
    "conv1x1": {"shortcut": "conv1x1"},
    "dropout": {"shortcut": "dropout", "dropout": 0.3},
    "dropout-rescaled": {"shortcut": "dropout", "dropout": 0.3, "rescaled": True},
}
NETWORKS = {"basic": ("resnet20", {}), "bottleneck": ("resnet29", {}), "one-layer": ("resnet20", {"one_layer": True})}
activations = pytest.mark.parametrize("activation", ORDERS)
shortcuts = pytest.mark.parametrize("shortcut", SHORTCUTS.values(), ids=SHORTCUTS)
networks = pytest.mark.parametrize(("name", "layers"), NETWORKS.values(), ids=NETWORKS)


def images():
    x = torch.randn(3, 3, 8, 8, dtype=D, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def pair(name, **options):
    """The fused network and the plain one, in float64, with the same random weights."""
    plain = randomise(reference_model(name, num_classes=5, **options)).double()
    fused = create_model(name, num_classes=5, **options).double()
    fused.load_state_dict(plain.state_dict())
    return fused, plain


# The formulas. Of each order: what precedes the addition of the first layer and of further ones, then of the branch, then what follows.
FIGURE_4 = {
    "original": ("conv bn", "relu conv bn", "", "relu"),
    "bn_after_addition": ("conv", "bn relu conv", "", "bn relu"),
    "relu_before_addition": ("conv bn", "relu conv bn", "relu", ""),
    "relu_only_preact": ("relu conv bn", "relu conv bn", "", ""),
    "full_preact": ("bn relu conv", "bn relu conv", "", ""),
}
HEADS = dict.fromkeys(FIGURE_4, "conv bn relu") | {"relu_only_preact": "conv bn", "full_preact": "conv"}
TAILS = dict.fromkeys(FIGURE_4, "") | {"relu_only_preact": "relu", "full_preact": "bn relu"}


class Literal:
    """The network by its formulas, from a state_dict alone."""

    def __init__(self, state, training, activation, units, layers, shortcut="identity", **options):
        self.state, self.training, self.activation, self.units, self.layers = state, training, activation, units, layers
        self.shortcut, self.options = shortcut, options

    def bn(self, name, x):
        keys = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (self.state[f"{name}.{key}"][:, None, None] for key in keys)
        if self.training:
            mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt() * weight + bias

    def conv(self, name, x, stride=1):
        weight = self.state[f"{name}.weight"]
        return F.conv2d(x, weight, self.state.get(f"{name}.bias"), stride, weight.size(-1) // 2)

    def __call__(self, x):
        x = self.run(HEADS[self.activation], x, {"conv": ["conv1"], "bn": ["bn1"]})
        for stage in (1, 2, 3):
            for i in range(self.units):
                x = self.unit(f"layer{stage}.{i}", x, 2 if i == 0 and stage > 1 else 1, i == 0)
        x = self.run(TAILS[self.activation], x, {"bn": ["bn"]})
        return x.mean((2, 3)) @ self.state["fc.weight"].T + self.state["fc.bias"]

    def run(self, operations, x, names, stride=1):
        for operation in operations.split():
            if operation == "relu":
                x = x * (x > 0)
            elif operation == "bn":
                x = self.bn(names["bn"].pop(0), x)
            else:
                x, stride = self.conv(names["conv"].pop(0), x, stride), 1
        return x

    def unit(self, name, x, stride, first):
        names = {kind: [f"{name}.{kind}{i + 1}" for i in range(self.layers)] for kind in ("conv", "bn")}
        one, further, before, after = FIGURE_4[self.activation]
        in_front, _, behind = one.partition("conv")
        z = self.run(in_front, x, names)
        h = self.run(f"conv {behind}", z, names, stride)
        h = self.run(" ".join([further] * (self.layers - 1) + [before]), h, names)
        if in_front and (first or self.shortcut == "conv1x1"):
            x = z
        y = self.run(after, self.added(name, x, h, stride), names)
        return y

    def added(self, name, x, h, stride):
        o = self.options
        if o.get("shortcut_scale") == 0:
            return o.get("branch_scale", 1) * h
        s = x
        if f"{name}.downsample.weight" in self.state:
            s = self.conv(f"{name}.downsample", x, stride)
            if self.activation in ("original", "relu_before_addition", "relu_only_preact"):
                s = self.bn(f"{name}.bn_downsample", s)
        elif stride == 2:
            s = torch.cat([x[:, :, ::2, ::2], torch.zeros_like(x[:, :, ::2, ::2])], 1)
        if self.shortcut == "constant_scaling":
            return o["shortcut_scale"] * s + o.get("branch_scale", 1) * h
        if self.shortcut in ("exclusive_gating", "shortcut_only_gating"):
            g = 1 / (1 + torch.exp(-self.conv(f"{name}.join.gate", x, stride)))
            return (1 - g) * s + (g * h if self.shortcut == "exclusive_gating" else h)
        if self.shortcut == "dropout":
            mean = 1 if o.get("rescaled") else 1 - o["dropout"]
            kept = F.dropout(torch.ones_like(s), o["dropout"]) > 0 if self.training else 1 - o["dropout"]
            return kept * s * mean / (1 - o["dropout"]) + h
        return s + h


def assert_is_the_formula(name, activation, **options):
    """Logits and every gradient, with the statistics of the batch and with the running ones."""
    plain = randomise(reference_model(name, num_classes=5, activation=activation, **options)).double()
    one_layer = options.pop("one_layer", False)
    layers = 3 if name == "resnet29" else 1 if one_layer else 2
    parameters = dict(plain.named_parameters())
    for training in (True, False):
        # A copy: in training mode the network moves its own statistics.
        state = {key: value.clone().requires_grad_(key in parameters) for key, value in plain.state_dict().items()}
        literal = Literal(state, training, activation, 6 if one_layer else 3, layers, **options)
        outcomes = []
        for network, weights in ((plain.train(training), parameters), (literal, {key: state[key] for key in parameters})):
            torch.manual_seed(1)
            y = network(images())
            gradients = torch.autograd.grad((y * torch.randn(y.shape, dtype=D)).sum(), list(weights.values()), allow_unused=True)
            outcomes.append({"y": y} | dict(zip(weights, gradients, strict=True)))
        assert_same(*outcomes, rtol=1e-7, atol=1e-8)


@networks
@activations
def test_is_figure_4(name, layers, activation):
    assert_is_the_formula(name, activation, **layers)


@pytest.mark.parametrize("name", ["resnet20", "resnet29"])
@pytest.mark.parametrize("activation", ["original", "full_preact"])
@shortcuts
def test_is_figure_2(name, activation, shortcut):
    assert_is_the_formula(name, activation, **shortcut)


@activations
def test_the_projections_of_every_order(activation):
    """Whether a BN follows them, and what they read, differs between the orders."""
    assert_is_the_formula("resnet20", activation, shortcut="conv1x1")


def test_every_shortcut_is_tried():
    assert {o["shortcut"] for o in SHORTCUTS.values()} == set(JOINS)


# Fused.


def assert_fused_is_plain(name, **options):
    outcomes = []
    for network in pair(name, **options):
        torch.manual_seed(1)
        outcomes.append(results(network, images()))
    assert_same(*outcomes, rtol=1e-7, atol=1e-8)


@networks
@activations
def test_fused_is_plain(name, layers, activation):
    """float64: logits, every gradient and every running statistic."""
    assert_fused_is_plain(name, activation=activation, **layers)


@pytest.mark.parametrize("activation", ["original", "full_preact"])
@shortcuts
def test_fused_shortcuts_are_plain(activation, shortcut):
    assert_fused_is_plain("resnet20", activation=activation, **shortcut)


@pytest.mark.parametrize(("paper", "own"), [("resnet20", "preact_resnet20"), ("resnet29", "preact_resnet29")])
def test_full_preactivation_is_the_network_of_the_authors_codes(paper, own):
    """The same keys in the same order; with the same weights the same logits, gradients and running statistics."""
    fused, plain = pair(paper, activation="full_preact")
    twin = create_model(own, num_classes=5).double()
    assert list(twin.state_dict()) == list(plain.state_dict())
    twin.load_state_dict(plain.state_dict())
    wanted = results(twin, images())
    for network in (fused, plain):
        assert_same(results(network, images()), wanted, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("depth", [20, 29, 56, 110, 164, 1001])
def test_full_preactivation_has_the_keys_of_the_authors_codes(depth):
    with torch.device("meta"):
        ours, theirs = (
            create_model(name, **options).state_dict()
            for name, options in ((f"resnet{depth}", {"activation": "full_preact"}), (f"preact_resnet{depth}", {}))
        )
    assert [(key, value.shape) for key, value in ours.items()] == [(key, value.shape) for key, value in theirs.items()]


# Fused triples and whole units. Post-activated: every BN that a ReLU and a convolution follow, so bn1 of 9 units and that of the stem.
FUSED = {
    ("resnet20", "original"): (10, 0),
    ("resnet20", "bn_after_addition"): (18, 0),
    ("resnet20", "relu_before_addition"): (10, 0),
    ("resnet20", "relu_only_preact"): (10, 0),
    ("resnet20", "full_preact"): (18, 6),
    ("resnet29", "original"): (19, 0),
    ("resnet29", "bn_after_addition"): (27, 3),
    ("resnet29", "relu_before_addition"): (19, 0),
    ("resnet29", "relu_only_preact"): (19, 0),
    ("resnet29", "full_preact"): (27, 9),
}


@pytest.mark.parametrize(("name", "activation"), FUSED)
def test_what_is_fused(name, activation):
    """Whole units are those around an identity that nobody activated, or around a projection of the first activation."""
    model = create_model(name, activation=activation)
    # `explain` would fuse what is not.
    assert all(isinstance(module, FusedNorm) for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d))
    report = fp.explain(model, images().float())
    assert (report.triples, report.units) == FUSED[name, activation]


# Counts.


def count(name, **options):
    with torch.device("meta"):
        return sum(p.numel() for p in create_model(name, **options).parameters())


PARAMETERS = {
    "110": ("resnet110", {}, 1_727_962),
    "110-1layer": ("resnet110", {"one_layer": True}, 1_727_962),
    "164": ("resnet164", {}, 1_703_258),
    "164-cifar100": ("resnet164", {"num_classes": 100}, 1_726_388),
    "1001": ("resnet1001", {}, 10_327_706),
    "1001-cifar100": ("resnet1001", {"num_classes": 100}, 10_350_836),
}


@pytest.mark.parametrize(("name", "options", "parameters"), PARAMETERS.values(), ids=PARAMETERS)
def test_parameter_counts(name, options, parameters):
    assert count(name, activation="full_preact", **options) == parameters


# Input and output channels of the 54 units of ResNet-110.
UNITS_110 = [(16, 16)] * 18 + [(16, 32)] + [(32, 32)] * 17 + [(32, 64)] + [(64, 64)] * 17
SQUARES = sum(c * d for c, d in UNITS_110)
OUTPUTS = sum(d for _, d in UNITS_110)
# Convolutions and classifier, and a BN behind the stem's convolution and behind both of every unit.
ORIGINAL_110 = 1_719_866 + 2 * (16 + 2 * OUTPUTS)
# Of ResNet-164 and of its 18 bottlenecks of each width; three projections, each with a BN where the branch ends with one.
BNS_164 = sum(18 * (w + w + 4 * w) for w in (16, 32, 64))
PROJECTED_164 = 4 * (16 + 32 + 64)
BY_HAND = {
    "110-original": ("resnet110", {}, ORIGINAL_110),
    "110-bn-after-addition": ("resnet110", {"activation": "bn_after_addition"}, ORIGINAL_110),
    "110-relu-only": ("resnet110", {"activation": "relu_only_preact"}, ORIGINAL_110),
    "110-plain-net": ("resnet110", SHORTCUTS["plain-net"], ORIGINAL_110),
    "110-dropout": ("resnet110", {"shortcut": "dropout"}, ORIGINAL_110),
    "110-exclusive": ("resnet110", {"shortcut": "exclusive_gating"}, ORIGINAL_110 + SQUARES + OUTPUTS),
    "110-shortcut-only": ("resnet110", {"shortcut": "shortcut_only_gating"}, ORIGINAL_110 + SQUARES + OUTPUTS),
    "110-conv1x1": ("resnet110", {"shortcut": "conv1x1"}, ORIGINAL_110 + SQUARES + 2 * OUTPUTS),
    "110-conv1x1-preact": ("resnet110", {"shortcut": "conv1x1", "activation": "full_preact"}, 1_727_962 + SQUARES),
    "164-original": ("resnet164", {}, 1_679_034 + 2 * (16 + BNS_164 + PROJECTED_164)),
    "164-relu-before-addition": ("resnet164", {"activation": "relu_before_addition"}, 1_679_034 + 2 * (16 + BNS_164 + PROJECTED_164)),
    "164-bn-after-addition": ("resnet164", {"activation": "bn_after_addition"}, 1_679_034 + 2 * (16 + BNS_164)),
}


@pytest.mark.parametrize(("name", "options", "parameters"), BY_HAND.values(), ids=BY_HAND)
def test_parameter_counts_of_variants(name, options, parameters):
    assert count(name, **options) == parameters


# Shortcuts.


@pytest.mark.parametrize("bias", [0, -6, 2.5])
@pytest.mark.parametrize("shortcut", ["exclusive_gating", "shortcut_only_gating"])
def test_a_gate_begins_at_the_sigmoid_of_its_bias(shortcut, bias):
    """Of an input of zeros exactly; W_g is drawn as other weights are."""
    torch.manual_seed(0)
    model = create_model("resnet20", shortcut=shortcut, gate_bias=bias)
    gates = [module for module in model.modules() if isinstance(module, Gate)]
    assert len(gates) == 9
    sigmoid = 1 / (1 + 2.718281828459045**-bias)
    for unit, gate in zip(model.units(), gates, strict=True):
        c, d = gate.gate.in_channels, gate.gate.out_channels
        zero, s, h = torch.zeros(1, c, 4, 4), torch.full((1, d, 4 // unit.stride, 4 // unit.stride), 3.0), torch.tensor(5.0)
        branch = 5 * sigmoid if shortcut == "exclusive_gating" else 5
        torch.testing.assert_close(gate(zero, s, h), torch.full_like(s, 3 * (1 - sigmoid) + branch))
    # From 32 channels to 64.
    assert gates[6].gate.weight.std().item() == pytest.approx((2 / 64) ** 0.5, rel=0.05)


def test_unless_told_otherwise_a_shortcut_is_the_papers():
    """Half of it is kept or dropped, the gate begins where the paper's best did, and the branch is as it is."""
    join = {shortcut: reference_model("resnet20", shortcut=shortcut).layer1[0].join for shortcut in JOINS}
    assert (join["constant_scaling"].shortcut_scale, join["constant_scaling"].branch_scale) == (0.5, 1)
    assert (join["dropout"].rate, join["dropout"].mean) == (0.5, 0.5)
    assert all((join[f"{gating}_gating"].gate.bias == -6).all() for gating in ("exclusive", "shortcut_only"))


def test_the_images_need_no_three_channels():
    assert create_model("resnet20", in_channels=1, num_classes=4)(torch.randn(2, 1, 8, 8)).shape == (2, 4)


def test_dropout_of_nothing_is_the_identity():
    outcomes = []
    for options in ({"shortcut": "dropout", "dropout": 0}, {}):
        torch.manual_seed(0)
        outcomes.append(create_model("resnet20", **options)(images().float()))
    assert torch.equal(*outcomes)


@pytest.mark.parametrize(("rescaled", "values", "mean"), [(False, [0.0, 1.0], 0.5), (True, [0.0, 2.0], 1.0)], ids=["paper", "torch"])
def test_dropout_masks(rescaled, values, mean):
    """The paper's expectation of the shortcut is 0.5; torch's is 1. In eval mode it is exactly that."""
    join, ones = Dropout(0.5, rescaled), torch.ones(200, 200)
    y = join(ones, ones, torch.zeros(200, 200))
    assert y.unique().tolist() == values
    # Six deviations of a mean of 40,000 elements.
    assert y.mean().item() == pytest.approx(mean, abs=6 * mean / 200)
    assert (join.eval()(ones, ones, torch.zeros(200, 200)) == mean).all()


@pytest.mark.parametrize("name", ["resnet20", "resnet29"])
def test_a_shortcut_of_zero_is_the_plain_net(name):
    """Zeros in the last BN of a unit leave nothing of its input, where the same network with a shortcut keeps it."""
    for options, keeps in ((SHORTCUTS["plain-net"], False), (SHORTCUTS["identity"], True)):
        model = reference_model(name, **options)
        unit = model.layer1[1]
        last = unit.bn3 if name == "resnet29" else unit.bn2
        torch.nn.init.zeros_(last.weight)
        y = unit(torch.rand(2, unit.conv1.in_channels, 4, 4))
        assert bool(y.any()) == keeps
        assert any("downsample" in key for key in model.state_dict()) == (keeps and name == "resnet29")
