"""What networks of pytorchcv save for backward, reckoned from their architecture and weighed.

Eager PyTorch saves the input of every norm and of every convolution behind one; fused, the latter is computed again.
"""

from typing import NamedTuple

import pytest

from fused_preact.bench.memory import peak_bytes, saved_bytes
from fused_preact.convert import fuse
from tests.convert.test_zoo import images, make, pytestmark  # noqa: F401

BATCH, FLOAT = 4, 4


class Network(NamedTuple):
    """Elements an image: inputs of norms in front of convolutions, what these norms hand to the convolutions, and all else that is saved.

    A norm that stays as it is counts as all else, and so does what pooling reads; then come the image and the classifier's input.
    """

    name: str
    why: str
    inputs: int
    handed: int
    others: int


def preresnet20():
    inputs = 7 * 16 * 32**2 + 6 * 32 * 16**2 + 5 * 64 * 8**2
    return inputs, inputs, 2 * 64 * 8**2 + 3 * 32**2 + 64


def preresnet164bn():
    # The 3x3 has the stride, so two norms of the first unit of a stage still see the larger images.
    stage1 = (16 + 17 * 64 + 36 * 16) * 32**2
    stage2 = (64 + 32) * 32**2 + (32 + 17 * (128 + 2 * 32)) * 16**2
    stage3 = (128 + 64) * 16**2 + (64 + 17 * (256 + 2 * 64)) * 8**2
    inputs = stage1 + stage2 + stage3
    return inputs, inputs, 2 * 256 * 8**2 + 3 * 32**2 + 256


def densenet40_k12():
    # Every unit reads all that was made before it, and a transition reads the last and halves it.
    stages = [(24, 32), (84, 16), (114, 8)]
    inputs = sum((first + 12 * unit) * side**2 for first, side in stages for unit in range(13)) - 258 * 8**2
    return inputs, inputs, 84 * 32**2 + 114 * 16**2 + 2 * 258 * 8**2 + 3 * 32**2 + 258


def pyramidnet110_a48():
    widths = [round(16 + 48 * unit / 54) for unit in range(55)]
    read, written = (32,) * 19 + (16,) * 18 + (8,) * 17, (32,) * 18 + (16,) * 18 + (8,) * 18
    first = sum(width * side**2 for width, side in zip(widths[:-1], read, strict=True))
    second = sum(width * side**2 for width, side in zip(widths[1:], written, strict=True))
    # A third norm ends each unit, one stands behind the stem, and one in front of the pooling.
    return first + second, first + second, second + 16 * 32**2 + 2 * 64 * 8**2 + 3 * 32**2 + 64


NETWORKS = [
    Network("preresnet20", "whole units, basic", *preresnet20()),
    Network("preresnet164bn", "whole units, bottlenecks", *preresnet164bn()),
    Network("densenet40_k12", "layers one by one, and concatenations", *densenet40_k12()),
    Network("pyramidnet110_a48", "no ReLU in some, and norms that stay as they are", *pyramidnet110_a48()),
]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_fused_saves_what_must_remain(network):
    plain, x = make(f"{network.name}_cifar10"), images(BATCH)
    fused = fuse(plain)
    eager = FLOAT * BATCH * (network.inputs + network.handed + network.others)
    remaining = FLOAT * BATCH * (network.inputs + network.others)
    # 3 %: a few numbers a channel.
    assert saved_bytes(plain, lambda: plain(x).sum()) == pytest.approx(eager, rel=0.03)
    assert saved_bytes(fused, lambda: fused(x).sum()) == pytest.approx(remaining, rel=0.03)


@pytest.mark.parametrize("network", NETWORKS[1:], ids=lambda network: network.name)
def test_nothing_else_is_held(network):
    """`saved_bytes` watches what is saved, and deferred tensors are computed earlier then; a forward that nobody watches holds no more.

    Networks so deep that scratch memory and what is in work are less than the 3 %.
    """
    fused, x = fuse(make(f"{network.name}_cifar10")), images(BATCH)
    fused(x).sum().backward()
    assert peak_bytes(lambda: fused(x).sum(), [x]) <= 1.03 * FLOAT * BATCH * (network.inputs + network.others)
