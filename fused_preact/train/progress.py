"""What a person sees while training runs: a bar on a terminal, one plain line an epoch everywhere."""

import math
import sys
from types import TracebackType
from typing import Self

import torch

from fused_preact._extras import require
from fused_preact.train.record import EpochRecord
from fused_preact.train.usage import peak_mb

_BAR = "{desc} {percentage:3.0f}%|{bar}| {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """A tqdm bar over all images of a run on stderr, hidden when stderr is not a terminal.

    Args:
        epochs: of the whole run.
        total_images: learnt from in all of them.
        done_images: learnt from before, by a run that goes on; the speed and the time left do not count them.
        quiet: nothing at all, for all processes but one.
        device: whose memory the bar shows.
        top5: tell how often the label is among the first five, which says little of ten classes.
    """

    def __init__(
        self,
        epochs: int,
        total_images: int,
        done_images: int = 0,
        quiet: bool = False,
        device: torch.device | str = "cpu",
        top5: bool = False,
    ) -> None:
        self._tqdm = require("tqdm").tqdm
        # A process that was started with stderr closed has none.
        self._quiet = quiet or sys.stderr is None
        self._epochs, self._device, self._top5 = epochs, device, top5
        self._bar = self._tqdm(
            total=total_images,
            initial=done_images,
            unit=" images",
            bar_format=_BAR,
            dynamic_ncols=True,
            disable=self._quiet or not sys.stderr.isatty(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.close()

    def epoch(self, epoch: int) -> None:
        """Epoch number `epoch` (from 1) begins."""
        self._bar.set_description_str(f"epoch {epoch}/{self._epochs}", refresh=False)

    def advance(self, images: int) -> None:
        """`images` more have been learnt from."""
        self._bar.update(images)

    def show(self, loss: float, accuracy: float) -> None:
        """Means over the epoch so far, and the most memory so far, beside the bar."""
        if not self._bar.disable:
            memory = f", {gigabytes(peak)}" if math.isfinite(peak := peak_mb(self._device)) else ""
            self._bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}{memory}", refresh=False)

    def record(self, record: EpochRecord) -> None:
        """One line for an epoch that is over."""
        top5 = f", top-5 {record.test_top5:.2%}" if self._top5 else ""
        self.note(
            f"epoch {record.epoch}/{self._epochs}: train loss {record.train_loss:.4f}, accuracy {record.train_accuracy:.2%}; "
            f"test loss {record.test_loss:.4f}, accuracy {record.test_accuracy:.2%}{top5}; "
            f"{record.seconds:.1f} s, {record.images_per_s:.0f} images/s"
        )

    def note(self, text: str) -> None:
        """A line above the bar."""
        if not self._quiet:
            self._tqdm.write(text, file=sys.stderr)


def gigabytes(mb: float) -> str:
    """10^6 bytes in words."""
    return f"{mb / 1e3:.2f} GB"
