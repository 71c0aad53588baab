"""The table of layer shapes against what the reference networks really call."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from fused_preact.models import architecture, reference_model
from fused_preact.models.shapes import LAYER_SHAPES, NETWORKS, Layer, layer_shapes, layers


class Recorder(TorchFunctionMode):
    """Counts convolutions whose input is a ReLU's output whose input is a batch norm's output."""

    def __init__(self):
        super().__init__()
        self.normed, self.activated, self.seen = [], [], Counter()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function is F.batch_norm:
            self.normed.append(result)
        elif function is F.relu and any(args[0] is tensor for tensor in self.normed[-1:]):
            self.activated.append(result)
        elif function is torch.conv2d and any(args[0] is tensor for tensor in self.activated[-1:]):
            x, weight, _, stride = args[:4]
            assert x.shape[2] == x.shape[3]
            self.seen[Layer(weight.shape[1], weight.shape[0], weight.shape[2], stride[0], x.shape[2])] += 1
        return result


@pytest.mark.parametrize("name", [*NETWORKS, "preact_resnet110", "preact_resnet50", "preact_resnet18"])
def test_layers_are_those_that_the_reference_network_calls(name):
    with torch.device("meta"):
        model = reference_model(name)
        side = architecture(name).image_size
        with Recorder() as recorder:
            model(torch.empty(2, 3, side, side))
    assert Counter(layers(architecture(name))) == recorder.seen


def test_the_table_has_every_layer_of_every_network_once():
    assert len({shape.layer for shape in LAYER_SHAPES}) == len({shape.id for shape in LAYER_SHAPES}) == len(LAYER_SHAPES)
    for name in NETWORKS:
        table = {shape.layer: shape.networks[name] for shape in LAYER_SHAPES if name in shape.networks}
        assert table == Counter(layers(architecture(name)))


def test_hand_counted_layers():
    shapes = {shape.id: shape.networks for shape in LAYER_SHAPES}
    # 54 bottlenecks of three convolutions: 18 a stage, of which the first has other widths; three projections.
    assert shapes["16x16-3x3-s1-32px"] == {"preact_resnet164": 18, "preact_resnet1001": 111}
    assert shapes["16x64-1x1-s1-32px"] == {"preact_resnet164": 19, "preact_resnet1001": 112}
    assert shapes["64x128-1x1-s2-32px"] == {"preact_resnet164": 1, "preact_resnet1001": 1}
    # Its first unit has no activation in front of conv1, so only conv2 and conv3 count there.
    assert shapes["64x64-3x3-s1-56px"] == {"preact_resnet200": 3}
    assert shapes["256x64-1x1-s1-56px"] == {"preact_resnet200": 2}
    assert sum(shapes[id].get("preact_resnet164", 0) for id in shapes) == 54 * 3 + 3


def test_networks_without_a_layer_are_left_out():
    assert all(count > 0 for shape in LAYER_SHAPES for count in shape.networks.values())
    assert {name for shape in layer_shapes(("preact_resnet20",)) for name in shape.networks} == {"preact_resnet20"}
