"""The authors' initialisation, common to both of their codes."""

from torch import nn


def initialise(model: nn.Module) -> None:
    """Convolutions from N(0, 2 / (kernel area * output channels)) ("MSRA", fan-out), biases zero; BN starts as gamma 1, beta 0.

    Linear weights keep torch's default, uniform in +-1/sqrt(inputs), as torch7's was.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
