import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from fused_preact.train.config import OF_THE_MACHINE, TrainConfig, differences
from fused_preact.train.recipes import RECIPES, describe, resolve


def config(recipe, **given):
    return TrainConfig(**resolve(recipe, given) | {"out": Path("x")})


def test_the_paper_on_cifar():
    """He et al. 2016, appendix: batch 128, 0.01 for 400 iterations, then 0.1, /10 at 32k and 48k of 64k, weight decay 1e-4."""
    recipe = config("paper-cifar")
    assert (recipe.data, recipe.batch_size, recipe.iterations, recipe.epochs) == ("cifar10", 128, 64_000, None)
    assert (recipe.lr, recipe.warmup_lr, recipe.warmup_iterations, recipe.milestones) == (0.1, 0.01, 400, (32_000, 48_000))
    assert (recipe.weight_decay, recipe.decay, recipe.momentum, recipe.nesterov) == (1e-4, "conv", 0.9, False)


def test_the_released_code_on_cifar():
    """resnet-1k-layers: -batchSize 64 -nEpochs 200; fb.resnet.torch: Nesterov, weight decay of everything, no warm-up."""
    recipe = config("released-cifar")
    assert (recipe.data, recipe.batch_size, recipe.epochs, recipe.iterations, recipe.warmup_iterations) == ("cifar10", 64, 200, None, 0)
    assert (recipe.weight_decay, recipe.decay, recipe.momentum, recipe.nesterov) == (1e-4, "all", 0.9, True)


def test_the_paper_on_imagenet():
    recipe = config("paper-imagenet")
    assert (recipe.model, recipe.data, recipe.batch_size, recipe.epochs) == ("preact_resnet200", "folder", 256, 90)
    assert (recipe.lr, recipe.warmup_iterations, recipe.milestones, recipe.decay, recipe.nesterov) == (0.1, 0, (30, 60), "conv", False)
    assert (recipe.crop_size, recipe.scale, recipe.lighting) == (224, "shorter-side", True)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_field_can_be_given_instead(recipe):
    given = {"model": "preact_resnet20", "data": "digits", "batch_size": 7, "lr": 0.5, "nesterov": True, "decay": "all", "seed": 3}
    found = config(recipe, **given)
    assert {name: getattr(found, name) for name in given} == given
    assert found.recipe == recipe


@pytest.mark.parametrize(
    ("recipe", "given", "length", "milestones"),
    [
        ("paper-cifar", {"iterations": 6400}, (None, 6400), (3200, 4800)),
        ("paper-cifar", {"epochs": 100}, (100, None), (50, 75)),
        ("paper-cifar", {"iterations": 6400, "milestones": (10,)}, (None, 6400), (10,)),
        ("released-cifar", {"epochs": 20}, (20, None), (8, 12)),
        ("released-cifar", {"lr": 0.2}, (200, None), (80, 121)),
        ("one-cycle", {"iterations": 9}, (None, 9), ()),
    ],
    ids=["shorter", "in epochs", "milestones given", "shorter in epochs", "length not given", "no milestones"],
)
def test_milestones_keep_their_place_in_another_length(recipe, given, length, milestones):
    found = config(recipe, **given)
    assert ((found.epochs, found.iterations), found.milestones) == (length, milestones)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown recipe 'paper-cifer'; did you mean 'paper-cifar'"):
        resolve("paper-cifer", {})


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("one-cycle", ["5 epochs of batches of 32", "up to 0.1", "Nesterov momentum 0.9", "1e-04 on every parameter", "1708.07120"]),
        (
            "paper-cifar",
            [
                "64000 iterations of batches of 128",
                "after 32000 and 48000 iterations",
                "0.01 for the first 400",
                "on weights of convolutions",
            ],
        ),
        ("released-cifar", ["200 epochs of batches of 64", "after 80 and 121 epochs", "Nesterov"]),
        (
            "paper-imagenet",
            ["90 epochs of batches of 256", "after 30 and 60 epochs", "224x224", "shorter side to 256..480", "PCA lighting"],
        ),
    ],
)
def test_a_recipe_says_what_it_is(recipe, words):
    text = describe(config(recipe))
    assert not [word for word in words if word not in text.replace("0.0001", "1e-04")]
    assert max(map(len, text.splitlines())) <= 140


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_config_survives_json(recipe):
    made = replace(config(recipe), data_dir=Path("data"), threads=2, model_options={"shortcut": "dropout", "dropout": 0.5})
    assert TrainConfig.from_json(json.loads(json.dumps(made.as_json() | {"torch": "2"}))) == made


def test_differences_are_those_that_change_the_result():
    one = config("paper-cifar")
    other = replace(one, lr=0.2, milestones=(1, 2), epochs=3, iterations=None)
    assert differences(one, other) == [
        "epochs none (now 3)",
        "iterations 64000 (now none)",
        "lr 0.1 (now 0.2)",
        "milestones 32000,48000 (now 1,2)",
    ]
    moved = {"out": Path("y"), "data_dir": Path("z"), "device": "cuda", "threads": 1, "workers": 0, "checkpoint_every": 1, "log_every": 1}
    assert differences(one, replace(one, **moved)) == []
    assert set(moved) == OF_THE_MACHINE
    assert {field.name for field in fields(TrainConfig)} > OF_THE_MACHINE


@pytest.mark.parametrize(("given", "milestones"), [({"epochs": 1}, (1, 1)), ({"iterations": 1}, (1, 1)), ({"epochs": 2}, (1, 2))])
def test_no_milestone_comes_before_the_beginning(given, milestones):
    """It would make the first learning rate a tenth."""
    assert resolve("paper-cifar", given)["milestones"] == milestones


def test_a_cycle_takes_milestones_and_warm_up_away():
    fields = resolve("paper-cifar", {"schedule": "one-cycle"})
    assert (fields["milestones"], fields["warmup_iterations"]) == ((), 0)
    assert resolve("paper-cifar", {"schedule": "one-cycle", "milestones": (3,)})["milestones"] == (3,)
