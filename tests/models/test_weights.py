"""Weights of other codes: the same networks give the same outputs, and whatever fails changes nothing."""

import builtins
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from fused_preact.models import architecture, create_model, list_models, load_weights, reference_model
from fused_preact.models.layouts import LAYOUTS, kind_of
from tests.models.public import LUA, FilterPruning, Port, flat
from tests.modules.test_units import randomise

SIZE = {True: 32, False: 64}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def images(name: str) -> torch.Tensor:
    size = SIZE[architecture(name).cifar]
    return torch.randn(2, 3, size, size, dtype=torch.float64)


def assert_same_function(model: nn.Module, source: nn.Module, x: torch.Tensor) -> None:
    """float64, with running statistics and with the batch's."""
    model, source = model.double(), source.double()
    for training in (False, True):
        torch.testing.assert_close(model.train(training)(x), source.train(training)(x), rtol=1e-9, atol=1e-9)


def saved(value: object, path: Path) -> Path:
    torch.save(value, path)
    return path


def bits(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def assert_refuses(model: nn.Module, path: Path, error: type, match: str, **options) -> None:
    """Raises, and not a bit of the model changes."""
    before = bits(model)
    with pytest.raises(error, match=match):
        load_weights(model, path, **options)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


# The same networks.


@pytest.mark.parametrize("name", ["preact_resnet20", "preact_resnet29", "preact_resnet18"])
@pytest.mark.parametrize("make", [create_model, reference_model])
def test_own(name, make, tmp_path):
    source, model = randomise(reference_model(name)), make(name)
    assert load_weights(model, saved(source.state_dict(), tmp_path / "w.pt")) == "fused_preact"
    assert_same_function(model, source, images(name))


@pytest.mark.parametrize("name", LUA)
def test_torch7(name, tmp_path):
    """One of each kind of the authors' networks, as a list of what their modules hold."""
    source, model = randomise(LUA[name]()), create_model(name, num_classes=5)
    assert load_weights(model, saved(flat(source), tmp_path / "w.pt")) == "torch7"
    assert_same_function(model, source, images(name))


def test_filter_pruning(tmp_path):
    source, model = randomise(FilterPruning(3)), create_model("preact_resnet20")
    assert load_weights(model, saved(source.state_dict(), tmp_path / "w.pth")) == "filter-pruning"
    assert_same_function(model, source, images("preact_resnet20"))


PORTS = {"preact_resnet18": ((2, 2, 2, 2), False), "preact_resnet50": ((3, 4, 6, 3), True)}


def port(name: str, first: str = "none") -> Port:
    """With its unused norm as it was made."""
    source = Port(*PORTS[name], classes=5, first=first)
    initial = {key: value.clone() for key, value in source.layer1[0].bn1.state_dict().items()}
    randomise(source).layer1[0].bn1.load_state_dict(initial)
    return source


@pytest.mark.parametrize("name", PORTS)
def test_preresnet_imagenet(name, tmp_path):
    source, model = port(name), create_model(name, num_classes=5)
    assert load_weights(model, saved(source.state_dict(), tmp_path / "w.pt")) == "PreResNetImageNet"
    assert_same_function(model, source, images(name))


def test_a_norm_that_should_be_unused_and_was_not(tmp_path):
    """The same keys and shapes, but the first unit calls its norm."""
    source = port("preact_resnet18", first="shared")
    source(torch.randn(2, 3, 64, 64))
    path = saved(source.state_dict(), tmp_path / "w.pt")
    assert_refuses(create_model("preact_resnet18", num_classes=5), path, ValueError, r"layer1\.0\.bn1 that was never called")


@pytest.mark.parametrize("name", list_models())
def test_layouts_are_one_to_one(name):
    with torch.device("meta"):
        ours = list(reference_model(name).state_dict())
    layouts = [layout for layout in LAYOUTS.values() if kind_of(architecture(name)) in layout.kinds]
    assert len(layouts) >= 2
    for layout in layouts:
        assert len(set(layout.keys(ours).values())) == len(ours)


# The file.


@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict", "model", "net"])
@pytest.mark.parametrize("prefix", ["", "module.", "module._orig_mod."])
def test_nests_and_prefixes(nest, prefix, tmp_path):
    source, model = reference_model("preact_resnet20"), create_model("preact_resnet20")
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = saved({nest: state, "epoch": 3, "best": 0.93} if nest else state, tmp_path / "w.pt")
    assert load_weights(model, path) == "fused_preact"
    assert all(torch.equal(value, source.state_dict()[key]) for key, value in model.state_dict().items())


def test_safetensors(tmp_path):
    safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")
    source, model = randomise(FilterPruning(3)), create_model("preact_resnet20")
    safetensors.save_file(source.state_dict(), tmp_path / "w.safetensors")
    assert load_weights(model, str(tmp_path / "w.safetensors")) == "filter-pruning"
    assert torch.equal(model.fc.weight, source.classifier.weight)
    whole = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(whole[: len(whole) // 2])
    assert_refuses(model, tmp_path / "w.safetensors", ValueError, "expected a file that safetensors reads, got '.*w.safetensors'")


def test_without_safetensors(tmp_path, monkeypatch):
    def without(name, *args, **kwargs):
        if name.startswith("safetensors"):
            raise ModuleNotFoundError(name)
        return imported(name, *args, **kwargs)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", without)
    assert_refuses(create_model("preact_resnet20"), tmp_path / "w.safetensors", ImportError, "pip install safetensors")


def test_files_without_num_batches_tracked(tmp_path):
    source, model = reference_model("preact_resnet20"), create_model("preact_resnet20").train()
    model(torch.randn(2, 3, 32, 32))
    load_weights(model, saved({key: v for key, v in source.state_dict().items() if "num_batches" not in key}, tmp_path / "w.pt"))
    assert model.bn.num_batches_tracked == 0
    assert torch.equal(model.bn.running_mean, torch.zeros(64))


def test_dtypes_are_those_of_the_model(tmp_path):
    model = create_model("preact_resnet20").double()
    load_weights(model, saved(reference_model("preact_resnet20").state_dict(), tmp_path / "w.pt"))
    assert model.fc.weight.dtype == torch.float64


class Hostile:
    def __reduce__(self):
        return Path.touch, (Path("touched"),)


def test_a_hostile_pickle_does_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = create_model("preact_resnet20")
    match = r"expected a file that torch.load\(weights_only=True\) reads, got '.*': "
    assert_refuses(model, saved({"state_dict": Hostile()}, tmp_path / "zip.pt"), ValueError, match)
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Hostile(), protocol=2))
    assert_refuses(model, tmp_path / "plain.pt", ValueError, match)
    assert not Path("touched").exists()


def test_damaged_files(tmp_path):
    model = create_model("preact_resnet20")
    path = saved(model.state_dict(), tmp_path / "w.pt")
    whole = path.read_bytes()
    for part in (b"", b"no weights at all", whole[: len(whole) // 2], whole[:100]):
        path.write_bytes(part)
        assert_refuses(model, path, ValueError, "expected a file that torch.load")
    with pytest.raises(FileNotFoundError):
        load_weights(model, tmp_path / "none.pt")
    with pytest.raises(IsADirectoryError):
        load_weights(model, tmp_path)


NOTHING = [(3, "int"), ({}, "an empty one"), ([], "an empty one"), ("text", "str"), ({1: torch.ones(1)}, "dict"), (torch.ones(2), "Tensor")]


@pytest.mark.parametrize(("value", "got"), NOTHING, ids=[got for _, got in NOTHING])
def test_no_state_dict(value, got, tmp_path):
    path = saved(value, tmp_path / "w.pt")
    assert_refuses(create_model("preact_resnet20"), path, ValueError, f"expected a state_dict or a list of tensors in '.*', got {got}")


# What does not fit.


def test_missing_and_extra_keys_are_named_by_torch(tmp_path):
    model, state = create_model("preact_resnet20"), reference_model("preact_resnet20").state_dict()
    missing = {key: value for key, value in state.items() if key != "layer2.1.conv1.weight"}
    extra = state | {"layer4.0.conv1.weight": torch.ones(1)}
    for changed, match in ((missing, r'Missing key.*"layer2\.1\.conv1\.weight"'), (extra, r'Unexpected key.*"layer4\.0\.conv1\.weight"')):
        assert_refuses(model, saved(changed, tmp_path / "w.pt"), RuntimeError, match)
        with pytest.raises(RuntimeError) as torchs:
            reference_model("preact_resnet20").load_state_dict(changed)
        with pytest.raises(RuntimeError) as ours:
            load_weights(model, tmp_path / "w.pt")
        assert str(ours.value) == str(torchs.value).replace("ReferenceResNet", "PreActResNet")


def test_a_left_over_key_is_not_taken_for_ours(tmp_path):
    """Their bn is missing, and a stray key is spelled as ours is."""
    state = port("preact_resnet18").state_dict()
    state = {("bn" + key[3:] if key.startswith("bn2.") else key): value for key, value in state.items()}
    path = saved(state, tmp_path / "w.pt")
    model = create_model("preact_resnet18", num_classes=5)
    assert_refuses(model, path, RuntimeError, r'(?s)Missing.*"bn\.weight".*Unexpected.*"bn\.weight \(theirs\)"', layout="PreResNetImageNet")


VALUES = [(3, "expected torch.Tensor"), (torch.ones(3), "size mismatch for fc.bias"), (torch.ones(10).to_sparse(), "fc.bias")]


@pytest.mark.parametrize(("value", "match"), VALUES, ids=["a number", "a shape", "sparse"])
def test_values_that_do_not_fit(value, match, tmp_path):
    state = reference_model("preact_resnet20").state_dict() | {"fc.bias": value}
    assert_refuses(create_model("preact_resnet20"), saved(state, tmp_path / "w.pt"), RuntimeError, match)


def test_other_networks_and_classes(tmp_path):
    model, path = create_model("preact_resnet20"), tmp_path / "w.pt"
    for name, options in (("preact_resnet20", {"num_classes": 100}), ("preact_resnet29", {}), ("preact_resnet18", {})):
        saved(reference_model(name, **options).state_dict(), path)
        assert_refuses(model, path, RuntimeError, "size mismatch for fc.weight")
    tensors = flat(LUA["preact_resnet20"]())
    assert_refuses(model, saved(tensors[:-1], path), ValueError, r"expected a list of 97 tensors in '.*', .*, got 96")
    assert_refuses(model, saved(tensors, path), RuntimeError, "size mismatch for fc.weight")


def test_an_unknown_layout_names_the_nearest(tmp_path):
    state = {f"encoder.{i}.weight": torch.ones(1) for i in range(4)} | {"conv1.weight": torch.ones(16, 3, 3, 3)}
    match = (
        r"of no known layout \(fused_preact, torch7, filter-pruning, PreResNetImageNet\); "
        r"the nearest for preact_resnet20 is 'fused_preact', which has no '[^,]*0.weight', '[^,]*1.weight', '[^,]*2.weight', \.\.\.$"
    )
    assert_refuses(create_model("preact_resnet20"), saved(state, tmp_path / "w.pt"), ValueError, match)


def test_the_layout_argument(tmp_path):
    model, source = create_model("preact_resnet20"), FilterPruning(3)
    path = saved(source.state_dict(), tmp_path / "w.pt")
    for layout, error, match in (
        ("filter_pruning", ValueError, "unknown layout 'filter_pruning'; did you mean 'filter-pruning'"),
        ("PreResNetImageNet", ValueError, "'PreResNetImageNet' is one of ImageNet networks, got a CIFAR basic one"),
        ("timm", ValueError, "are those of timm"),
        ("fused_preact", RuntimeError, "Missing key"),
    ):
        assert_refuses(model, path, error, match, layout=layout)
    assert load_weights(model, path, layout="filter-pruning") == "filter-pruning"


def test_the_model_is_one_of_ours(tmp_path):
    with pytest.raises(TypeError, match="expected a model of create_model or reference_model, got Linear"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pt")
