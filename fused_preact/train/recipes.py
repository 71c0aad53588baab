"""Presets: how the paper, its authors' released code, and a hurried user train."""

from typing import Any, NamedTuple

from fused_preact._text import unknown
from fused_preact.train.config import TrainConfig


class Recipe(NamedTuple):
    """Fields of a `TrainConfig`, and where they come from."""

    source: str
    fields: dict[str, Any]


RECIPES: dict[str, Recipe] = {
    "one-cycle": Recipe(
        "Smith and Topin 2017, arXiv 1708.07120: few epochs, one rise and fall of the learning rate",
        {"epochs": 5, "batch_size": 32, "schedule": "one-cycle", "lr": 0.1, "nesterov": True, "decay": "all"},
    ),
    "paper-cifar": Recipe(
        "He et al. 2016, appendix: 64k iterations, of which the first 400 are a warm-up",
        {
            "data": "cifar10",
            "epochs": None,
            "iterations": 64_000,
            "batch_size": 128,
            "schedule": "steps",
            "lr": 0.1,
            "milestones": (32_000, 48_000),
            "warmup_iterations": 400,
            "warmup_lr": 0.01,
            "nesterov": False,
            "decay": "conv",
        },
    ),
    "released-cifar": Recipe(
        "the authors' released code, resnet-1k-layers on fb.resnet.torch, as its README runs it",
        {
            "data": "cifar10",
            "epochs": 200,
            "batch_size": 64,
            "schedule": "steps",
            "lr": 0.1,
            "milestones": (80, 121),
            "nesterov": True,
            "decay": "all",
        },
    ),
    "paper-imagenet": Recipe(
        "He et al. 2016, appendix: no warm-up; images as in He et al. 2015, scaled by the shorter side",
        {
            "model": "preact_resnet200",
            "data": "folder",
            "epochs": 90,
            "batch_size": 256,
            "schedule": "steps",
            "lr": 0.1,
            "milestones": (30, 60),
            "nesterov": False,
            "decay": "conv",
            "crop_size": 224,
            "scale": "shorter-side",
            "lighting": True,
        },
    ),
}


def resolve(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The fields of recipe `name` with those `given` in their place.

    A length that is given moves milestones that are not: they keep their place in the whole, but none comes before the first epoch or
    iteration is over. A cycle that is given takes a recipe's milestones and warm-up away. Raises ValueError for an unknown name.
    """
    if name not in RECIPES:
        raise ValueError(unknown("recipe", name, RECIPES))
    own = RECIPES[name].fields
    result = {"recipe": name} | own | given
    for unit, other in (("epochs", "iterations"), ("iterations", "epochs")):
        if given.get(unit) is not None:
            result[other] = None
            if "milestones" in own and "milestones" not in given:
                before = own.get(unit) or own[other]
                result["milestones"] = tuple(max(1, round(m * given[unit] / before)) for m in own["milestones"])
    if result["schedule"] == "one-cycle":
        # What only a schedule in steps has, and nobody asked for.
        result |= {name: none for name, none in (("milestones", ()), ("warmup_iterations", 0)) if name not in given}
    return result


def describe(config: TrainConfig) -> str:
    """A few lines that say how the run learns, and whose idea that was."""
    length, unit = (config.epochs, "epochs") if config.epochs is not None else (config.iterations, "iterations")
    if config.schedule == "one-cycle":
        rate = f"up to {config.lr:g} and down again, one cycle"
    else:
        falls = f", a tenth of it after {' and '.join(map(str, config.milestones))} {unit} each"
        rate = f"{config.lr:g}" + (falls if config.milestones else "")
        if config.warmup_iterations:
            rate += f"; {config.warmup_lr:g} for the first {config.warmup_iterations} iterations"
    momentum = f"{'Nesterov ' if config.nesterov else ''}momentum {config.momentum:g}"
    rows = {
        "recipe": f"{config.recipe} ({RECIPES[config.recipe].source})" if config.recipe in RECIPES else config.recipe,
        "length": f"{length} {unit} of batches of {config.batch_size}",
        "learning rate": rate,
        "SGD": f"{momentum}, weight decay {config.weight_decay:g} on {_DECAYED[config.decay]}",
    }
    if config.data == "folder":
        lighting = ", PCA lighting" if config.lighting else ""
        rows["images"] = f"{config.crop_size}x{config.crop_size}, {_SCALED[config.scale]}{lighting}, mirrored"
    return "\n".join(f"{name:14} {value}" for name, value in rows.items())


_DECAYED = {"all": "every parameter", "conv": "weights of convolutions"}
_SCALED = {"aspect": "of random area and aspect ratio", "shorter-side": "cropped after scaling the shorter side to 256..480"}
