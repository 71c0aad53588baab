"""A network that learns: forward, loss, backward, and a step of SGD with momentum."""

import contextlib

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fused_preact.data.source import Batch
from fused_preact.train.config import TrainConfig
from fused_preact.train.graph import CapturedStep
from fused_preact.train.world import World


class Trainer:
    """`model`, on its device, with its optimizer and loss scaler; in several processes all of them take each step together."""

    def __init__(self, model: nn.Module, config: TrainConfig, world: World | None = None) -> None:
        self.model, self.config, self.world = model, config, world or World(device=config.device)
        self.optimizer = _sgd(model, config)
        self.scaler = torch.amp.GradScaler(config.device_type, enabled=config.dtype == "float16")
        # torch's DDP takes no SyncBatchNorm on a CPU, though the package's units share their statistics there too.
        self._averages = not self.world.alone and config.sync_bn and config.device_type == "cpu"
        self._forward = model if self.world.alone or self._averages else DistributedDataParallel(model, gradient_as_bucket_view=True)
        self._step = CapturedStep(self._update, config.device) if config.captured else self._update

    @property
    def lr(self) -> float:
        """The learning rate; waits for the device if the step is captured."""
        return float(self.optimizer.param_groups[0]["lr"])

    @lr.setter
    def lr(self, value: float) -> None:
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One step of the optimizer; (mean loss, number of hits) of this process's images, 0-d tensors on the device."""
        return self._step(*batch)

    def share_buffers(self) -> None:
        """Give every process the first one's running statistics: each moved its own by its own part of the batches."""
        if not self.world.alone:
            for buffer in self.model.buffers():
                dist.broadcast(buffer, src=0)

    def _update(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What a CUDA graph holds."""
        with autocast(self.config):
            logits = self._forward(images)
            loss = F.cross_entropy(logits, labels)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self._averages:
            self._average_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        return loss.detach(), (logits.detach().argmax(1) == labels).sum()

    def _average_gradients(self) -> None:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        self.world.total(flat).div_(self.world.shard.world)
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view(gradient.shape))


def autocast(config: TrainConfig) -> contextlib.AbstractContextManager:
    """Of the config's dtype; nothing in float32."""
    return torch.autocast(config.device_type, dtype=config.torch_dtype, enabled=config.dtype != "float32")


def _sgd(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    groups = [{"params": params, "weight_decay": decay} for params, decay in decayed(model, config) if params]
    options = {"momentum": config.momentum, "nesterov": config.nesterov}
    if not config.captured:
        return torch.optim.SGD(groups, lr=config.lr, **options)
    # Of torch's implementations only the fused one reads the learning rate and GradScaler's verdict on the device.
    for group in groups:
        group["lr"] = torch.tensor(config.lr, dtype=torch.float32, device=config.device)
    optimizer = torch.optim.SGD(groups, fused=True, **options)
    # Its first step would leave the buffers uninitialised if GradScaler skipped it; from zeros it gives the same.
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def decayed(model: nn.Module, config: TrainConfig) -> list[tuple[list[nn.Parameter], float]]:
    """The groups of the parameters, in the order of the optimizer, and the weight decay of each."""
    everything = list(model.parameters())
    if config.decay == "all":
        return [(everything, config.weight_decay)]
    convolutions = {id(module.weight) for module in model.modules() if isinstance(module, nn.Conv2d)}
    return [
        ([p for p in everything if id(p) in convolutions], config.weight_decay),
        ([p for p in everything if id(p) not in convolutions], 0.0),
    ]
