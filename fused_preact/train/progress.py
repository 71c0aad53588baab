"""What a person sees while training runs: a bar on a terminal, one plain line an epoch everywhere."""

import sys
from types import TracebackType
from typing import Self

from fused_preact._extras import require
from fused_preact.train.record import EpochRecord

_BAR = "{desc} {percentage:3.0f}%|{bar}| {rate_noinv_fmt}, {remaining} left{postfix}"


class Progress:
    """A tqdm bar over all images of all epochs on stderr, hidden when stderr is not a terminal."""

    def __init__(self, epochs: int, images_per_epoch: int) -> None:
        self._tqdm = require("tqdm").tqdm
        self._epochs = epochs
        self._bar = self._tqdm(
            total=epochs * images_per_epoch, unit=" images", bar_format=_BAR, dynamic_ncols=True, disable=not sys.stderr.isatty()
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
        """Means over the epoch so far, beside the bar."""
        self._bar.set_postfix_str(f"loss {loss:.3f}, accuracy {accuracy:.1%}", refresh=False)

    def record(self, record: EpochRecord) -> None:
        """One line for an epoch that is over."""
        line = (
            f"epoch {record.epoch}/{self._epochs}: train loss {record.train_loss:.4f}, accuracy {record.train_accuracy:.2%}; "
            f"test loss {record.test_loss:.4f}, accuracy {record.test_accuracy:.2%}; "
            f"{record.seconds:.1f} s, {record.images_per_s:.0f} images/s"
        )
        self._tqdm.write(line, file=sys.stderr)
