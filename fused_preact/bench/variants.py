"""The networks that a benchmark compares: fused, eager and compiled, one training step each, from the same weights."""

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fused_preact.backends import use_backend
from fused_preact.bench.networks import fused, image_size, is_own, num_classes, plain

BASELINES = ("eager", "compile")


class CompileError(RuntimeError):
    """torch.compile broke down; the message is the sentence that the user sees."""


class Config(NamedTuple):
    """What is measured. model: see `networks`. `image_size` None is the architecture's own; `backend` None lets every layer choose."""

    model: str
    batch_size: int
    image_size: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    memory: str = "layer"
    backend: str | None = None
    compile_whole: bool = False
    seed: int = 0

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def pixels(self) -> int:
        return self.image_size or image_size(self.model)


class Variant:
    """One network with its optimizer. 16-bit dtypes mean autocast with float32 master weights."""

    def __init__(self, name: str, model: nn.Module, config: Config) -> None:
        self.name, self.model = name, model
        self.device_type, self.dtype = torch.device(config.device).type, config.torch_dtype
        self.backend = config.backend if name == "fused" else None
        # Gradients of a mean over the batch underflow in float16; a constant stands in for GradScaler.
        self.loss_scale = 1024.0 if self.dtype == torch.float16 else 1.0
        # A learning rate of 0 is the same arithmetic, and leaves every variant at the same weights however often it is timed.
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=1e-4)

    def logits(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, classes), in the variant's own precision."""
        backend = use_backend(self.backend) if self.backend else contextlib.nullcontext()
        with backend, torch.autocast(self.device_type, self.dtype, enabled=self.dtype.itemsize == 2):
            return self.model(images)

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy, times `loss_scale`."""
        return F.cross_entropy(logits.float(), labels) * self.loss_scale

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch."""
        return self.loss(self.logits(images), labels)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward and optimizer step; ends without gradients, so that it can be measured again from the same state."""
        self.forward(images, labels).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def live(self) -> Iterator[Tensor]:
        """The tensors it owns between steps."""
        yield from self.model.parameters()
        yield from self.model.buffers()
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))


def build(name: str, config: Config, weights: dict[str, Tensor]) -> Variant:
    """The variant called "fused", "eager" or "compile", in training mode and channels_last, with a copy of `weights`."""
    model = fused(config.model, config.memory) if name == "fused" else plain(config.model)
    model.load_state_dict(weights)
    model.to(config.device, memory_format=torch.channels_last).train()
    if name == "compile":
        _compile(model, config)
    return Variant(name, model, config)


def common_weights(config: Config) -> dict[str, Tensor]:
    """Weights that a comparison of results can be made at, the same for the same seed.

    Fresh weights amplify rounding exponentially with depth: at 164 layers bfloat16 gradients of eager PyTorch have no correct digit,
    and nothing could be told from them. So the last convolution of each unit is divided by the number of units, in the package's own
    networks, whose units are known. Batch normalisation gets a scale and an offset that are not 1 and 0, so that leaving them out would
    be noticed.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = plain(config.model)
        units = model.units() if is_own(config.model) else []
        with torch.no_grad():
            for unit in units:
                getattr(unit, f"conv{unit.depth}").weight.div_(len(units))
            for module in model.modules():
                if isinstance(module, nn.BatchNorm2d) and module.affine:
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.normal_(0.0, 0.1)
    return model.state_dict()


def batch(config: Config, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Random images (N, 3, H, W), float32 and channels_last, and labels (N,); the same for the same seed."""
    size = size or config.batch_size
    generator = torch.Generator().manual_seed(config.seed)
    images = torch.randn(size, 3, config.pixels, config.pixels, generator=generator)
    classes = num_classes(config.model, min(config.batch_size, 2), config.pixels)
    labels = torch.randint(classes, (size,), generator=generator)
    return images.to(config.device, memory_format=torch.channels_last), labels.to(config.device)


def why_no_compile(device: str) -> str | None:
    """Why torch.compile can't work on this machine, in a sentence, or None."""
    if torch.device(device).type == "cuda":
        from torch.utils._triton import has_triton

        return None if has_triton() else "torch.compile needs triton on a GPU, and it is not installed or does not support this one"
    compiler = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler):
        return None
    return f"torch.compile needs a C++ compiler, and there is no {compiler!r} on PATH; CXX can name another"


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Surrounds the use of compiled variants: none falls back to eager in silence; raises CompileError, in a sentence."""
    import torch._dynamo
    from torch._dynamo.exc import FailOnRecompileLimitHit, TorchDynamoException

    try:
        # Units share code, so the first and the later units of each stage, at two batch sizes, count as recompilations of one function.
        with torch._dynamo.config.patch(recompile_limit=64, fail_on_recompile_limit_hit=True):
            yield
    except (FailOnRecompileLimitHit, TorchDynamoException) as error:
        raise CompileError(f"torch.compile failed on this machine: {next(iter(str(error).splitlines()), type(error).__name__)}") from error


def _compile(model: nn.Module, config: Config) -> None:
    for module in model.units() if is_own(config.model) and not config.compile_whole else [model]:
        module.compile(dynamic=False)
