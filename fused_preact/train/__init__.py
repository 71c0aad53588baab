"""Training on small data sets: `fit(TrainConfig(out=Path("runs/first")))`."""

from fused_preact.train.config import TrainConfig
from fused_preact.train.loop import fit
from fused_preact.train.record import EpochRecord, FitResult

__all__ = ["EpochRecord", "FitResult", "TrainConfig", "fit"]
