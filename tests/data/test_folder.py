import multiprocessing
import sys

import pytest
import torch
from PIL import Image

from fused_preact._extras import MissingExtraError
from fused_preact.data.crops import aspect, shorter_side, views
from fused_preact.data.decode import Drawn
from fused_preact.data.folder import MEAN, STD, folder
from fused_preact.data.source import DataError, Shard, View, generator, order
from tests.data.pictures import ramp, save, seen, undone

CLASSES = ("ant", "bee", "cat")
WHOLE = (60, 44)
CROP = 16


def write(split, classes, images):
    """Images of `classes` in turn; the blue of each is 10 times its number in the data set."""
    counts = [len(range(i, images, len(classes))) for i in range(len(classes))]
    number = 0
    for name, count in zip(classes, counts, strict=True):
        for i in range(count):
            save(ramp(*WHOLE, blue=10 * number), split / name / f"{i:02}.png")
            number += 1


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """11 images of 3 classes for training and 7 of 2 for testing."""
    top = tmp_path_factory.mktemp("images")
    write(top / "train", CLASSES, 11)
    write(top / "val", CLASSES[1:], 7)
    return top


def opened(root, **changes):
    return folder(root, **{"crop_size": CROP, "lighting": False, "workers": 0} | changes)


def numbers(batch, every=1):
    """Which images a batch without lighting holds."""
    return [round(blue / 10) for blue in undone(batch.images)[::every, ..., 2].mean((1, 2)).tolist()]


def together(batches):
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def same(first, second):
    return all(torch.equal(a, b) for a, b in zip(together(first), together(second), strict=True))


def test_classes_are_folders_in_the_order_of_their_names(root):
    source = opened(root)
    assert source.classes == list(CLASSES)
    assert (source.num_classes, source.image_size, source.train_images, source.test_images) == (3, CROP, 11, 7)
    images, labels = together(source.test_batches(3))
    assert numbers(source.test_batches(7).__next__()) == list(range(7))
    assert labels.tolist() == [1] * 4 + [2] * 3
    assert images.shape == (7, 3, CROP, CROP)


def test_files_at_any_depth_count_and_others_do_not(tmp_path):
    image = ramp(20, 20)
    for name in ("train/a/deep/er/1.JPEG", "train/a/2.png", "train/b/1.webp", "val/a/1.bmp"):
        save(image, tmp_path / name)
    for name in ("train/a/._2.png", "train/a/notes.txt", "train/.cache/1.png", "train/README"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no image")
    source = opened(tmp_path)
    assert source.classes == ["a", "b"]
    (batch,) = source.train_batches(3, seed=0, epoch=0)
    assert sorted(batch.labels.tolist()) == [0, 0, 1]


def test_links_to_folders_are_followed(root, tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).symlink_to(root / split, target_is_directory=True)
    assert opened(tmp_path).train_images == 11


@pytest.mark.parametrize("loops", [1, 3])
def test_a_link_to_a_folder_above_is_one_sentence_at_once(tmp_path, loops):
    """Following three of them as far as the system does would take years."""
    for split in ("train", "val"):
        write(tmp_path / split, CLASSES, 3)
    for number in range(loops):
        (tmp_path / "train" / "ant" / f"link{number}").symlink_to(tmp_path / "train")
    with pytest.raises(DataError) as caught:
        opened(tmp_path)
    assert str(caught.value) == f"root: expected no link to a folder that it lies in, got '{tmp_path}/train/ant/link0/ant'"


def test_a_folder_that_cannot_be_read_is_one_sentence(tmp_path):
    with pytest.raises(DataError) as caught:
        opened(tmp_path / ("long" * 100))
    assert str(caught.value) == f"root: expected folders that can be read, got '{tmp_path}/{'long' * 100}': File name too long"


def test_a_folder_called_test_serves_where_there_is_no_val(tmp_path):
    write(tmp_path / "train", CLASSES, 3)
    write(tmp_path / "test", CLASSES, 5)
    assert opened(tmp_path).test_images == 5
    write(tmp_path / "val", CLASSES, 4)
    assert opened(tmp_path).test_images == 4


def spoil(root, how):
    train, val = root / "train", root / "val"
    if how == "nothing":
        return root / "gone"
    if how in ("no-train", "no-classes"):
        write(val, CLASSES, 3)
        if how == "no-classes":
            save(ramp(9, 9), train / "flat.png")
        return root
    write(train, CLASSES, 3)
    if how == "empty-class":
        (train / "dog").mkdir()
    if how == "strange-class":
        write(val, ("bee", "cow", "dog"), 3)
    elif how == "empty-val":
        (val / "ant").mkdir(parents=True)
    elif how != "no-val":
        write(val, CLASSES, 3)
    return root


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("nothing", r"root: expected images in {0}/gone/train/<class>/ and {0}/gone/val/<class>/, got no folder {0}/gone"),
        ("no-train", r"root: expected images in {0}/train/<class>/ and {0}/val/<class>/, got no folder {0}/train"),
        ("no-val", r"root: expected images in {0}/train/<class>/ and {0}/val/<class>/, got no folder {0}/val"),
        ("no-classes", r"expected a folder for each class in {0}/train, got none"),
        ("empty-class", r"expected images (.bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp) in {0}/train/dog, got none"),
        ("empty-val", r"expected images (.bmp, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp) in the folders of {0}/val, got none"),
        ("strange-class", r"expected the classes of {0}/val to be among those of {0}/train, got cow, dog"),
    ],
)
def test_a_folder_that_is_not_what_it_should_be_is_one_sentence(tmp_path, how, sentence):
    with pytest.raises(DataError) as caught:
        opened(spoil(tmp_path, how))
    assert str(caught.value) == sentence.format(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scale": "aspct"}, "unknown scale 'aspct'; did you mean 'aspect'?"),
        ({"crop_size": 0}, "crop_size must be at least 1 pixel, got 0"),
        ({"workers": -1}, "workers must be 0 .* or more, got -1"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_one_sentence(root, changes, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        opened(root, **changes)


@pytest.mark.parametrize(
    ("ask", "sentence"),
    [
        (lambda s: s.train_batches(12, seed=0, epoch=0), "batch_size must be at most the number of training images, which is 11, got 12"),
        (
            lambda s: s.train_batches(0, seed=0, epoch=0),
            "batch_size must be a positive multiple of the number of processes, which is 1, got 0",
        ),
        (
            lambda s: s.train_batches(5, seed=0, epoch=0, shard=Shard(0, 2)),
            "batch_size must be a positive multiple of the number of processes, which is 2, got 5",
        ),
        (lambda s: s.test_batches(1, shard=Shard(0, 2)), "batch_size must be at least the number of processes, which is 2, got 1"),
        (
            lambda s: s.test_batches(1, view=View(24, 20)),
            "view.crop must be from 1 to view.resize pixels, got a crop of 24 and a resize of 20",
        ),
        (lambda s: s.test_batches(1, view=View(0)), "view.crop must be from 1 to view.resize pixels, got a crop of 0 and a resize of 0"),
    ],
    ids=["few-images", "no-images", "uneven", "fewer-than-processes", "crop-over-resize", "no-crop"],
)
def test_batches_that_cannot_be_had_are_one_sentence_at_once(root, ask, sentence):
    with pytest.raises(DataError) as caught:
        ask(opened(root))
    assert str(caught.value) == sentence


@pytest.mark.parametrize("module", ["PIL", "PIL.Image"])
def test_a_missing_package_is_one_sentence(root, monkeypatch, module):
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"^training needs PIL \(package pillow\), which.*pip install 'fused-preact\[train\]'$"):
        opened(root)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_damaged_file_is_one_sentence_wherever_it_is_decoded(tmp_path, split, workers):
    for part in ("train", "val"):
        write(tmp_path / part, CLASSES, 4)
    content = save(ramp(100, 100), tmp_path / split / "ant" / "cut.jpg").read_bytes()
    (tmp_path / split / "ant" / "cut.jpg").write_bytes(content[:-200])
    source = opened(tmp_path, workers=workers)
    batches = source.train_batches(5, seed=0, epoch=0) if split == "train" else source.test_batches(2)
    with pytest.raises(DataError) as caught:
        list(batches)
    assert str(caught.value).startswith(f"expected an image that can be decoded in {tmp_path}/{split}/ant/cut.jpg, got image file is trunc")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("scale", "choose"), [("aspect", aspect), ("shorter-side", shorter_side)])
@pytest.mark.parametrize("crop", [pytest.param(10, id="smaller"), pytest.param(100, id="enlarged")])
def test_training_images_are_the_boxes_drawn_for_their_numbers(root, scale, choose, crop):
    source = opened(root, scale=scale, crop_size=crop)
    turned = set()
    for epoch in range(3):
        shuffled = order(11, seed=5, epoch=epoch).tolist()
        batches = list(source.train_batches(4, seed=5, epoch=epoch))
        assert [numbers(batch) for batch in batches] == [shuffled[:4], shuffled[4:8]]
        images, labels = together(batches)
        assert labels.tolist() == [sum(number >= first for first in (4, 8)) for number in shuffled[:8]]
        for number, image in zip(shuffled, undone(images), strict=False):
            box = choose(*WHOLE, crop, generator(5, epoch, number))
            mirrored = bool(image[:, 0, 0].mean() > image[:, -1, 0].mean())
            turned.add(mirrored)
            # Where the filter would look beyond the image's edge it sees less of the ramp.
            edge = 1 + 2 * crop // 10
            inner = slice(edge, -edge)
            torch.testing.assert_close(image[inner, inner, :2], seen(box, crop, mirrored)[inner, inner], atol=1.01, rtol=0)
    assert turned == {False, True}


def test_images_are_normalised_float32_and_channels_last(root):
    batch = next(opened(root).train_batches(4, seed=0, epoch=0))
    assert batch.images.dtype == torch.float32
    assert batch.labels.dtype == torch.int64
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    blue = torch.tensor(numbers(batch)) * 10 / 255
    torch.testing.assert_close(batch.images[:, 2], ((blue - 0.406) / 0.225)[:, None, None].expand(4, CROP, CROP))


def test_an_epoch_is_the_same_bits_whatever_the_workers_the_start_and_the_processes(root):
    """And the generator that a model's dropout draws from is left alone."""
    before = torch.get_rng_state()
    draws = {"seed": 3, "epoch": 2}
    whole = list(opened(root, lighting=True).train_batches(4, **draws))
    parallel = opened(root, lighting=True, workers=2)
    assert same(parallel.train_batches(4, **draws), whole)
    assert same(parallel.train_batches(4, first=1, **draws), whole[1:])
    assert list(parallel.train_batches(4, first=2, **draws)) == []
    halves = [opened(root, lighting=True).train_batches(4, shard=Shard(rank, 2), **draws) for rank in range(2)]
    assert same([part for parts in zip(*halves, strict=True) for part in parts], whole)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("changes", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_every_seed_and_epoch_has_an_order_and_boxes_of_its_own(root, changes):
    draws = {"seed": 0, "epoch": 0}
    first, second = (undone(together(opened(root).train_batches(11, **d))[0]) for d in (draws, draws | changes))
    first_order, second_order = (order(11, **d) for d in (draws, draws | changes))
    assert not torch.equal(first_order, second_order)
    moved = (first[first_order.argsort()] - second[second_order.argsort()]).abs().amax((1, 2, 3))
    assert (moved > 1).all()


def test_lighting_adds_a_colour_to_each_image(root):
    plain, lit = (together(opened(root, lighting=lighting).train_batches(11, seed=0, epoch=0))[0] for lighting in (False, True))
    added = (lit - plain) * torch.tensor(STD).view(3, 1, 1)
    colours = torch.tensor([Drawn(CROP, "aspect", True, 0, 0)(*WHOLE, number).colour for number in order(11, seed=0, epoch=0).tolist()])
    torch.testing.assert_close(added, colours[:, :, None, None].expand_as(added), atol=1e-3, rtol=0)


@pytest.mark.parametrize("world", [1, 2, 3, 10])
@pytest.mark.parametrize("batch_size", [10, 13])
def test_processes_see_every_test_image_once_together(root, world, batch_size):
    source = opened(root)
    shards = [list(source.test_batches(batch_size, shard=Shard(rank, world))) for rank in range(world)]
    assert [sorted(n for batch in batches for n in numbers(batch)) for batches in shards] == [
        list(range(rank, 7, world)) for rank in range(world)
    ]
    assert max(len(batch.labels) for batches in shards for batch in batches) <= batch_size / world
    for batch in (batch for batches in shards for batch in batches):
        assert batch.labels.tolist() == [1 if number < 4 else 2 for number in numbers(batch)]


@pytest.mark.parametrize(
    ("crop_size", "view", "crop", "resize"),
    [
        pytest.param(14, View(), 14, 16, id="in-proportion"),
        pytest.param(224, View(), 224, 256, id="the-usual"),
        pytest.param(16, View(crop=320), 320, 320, id="large"),
        pytest.param(16, View(crop=28), 28, 32, id="crop-alone"),
        pytest.param(16, View(resize=44), 16, 44, id="resize-alone"),
        pytest.param(16, View(crop=24, resize=24), 24, 24, id="both"),
    ],
)
def test_a_view_is_the_centre_of_the_resized_image(root, crop_size, view, crop, resize):
    batch = next(opened(root, crop_size=crop_size).test_batches(2, view=view))
    assert batch.images.shape == (2, 3, crop, crop)
    (box,) = views(*WHOLE, crop, resize)
    edge = 1 + crop // 20
    inner = slice(edge, -edge)
    for image in undone(batch.images):
        torch.testing.assert_close(image[inner, inner, :2], seen(box, crop)[inner, inner], atol=1.01, rtol=0)


def test_a_view_that_neither_scales_nor_reaches_an_edge_is_the_pixels_themselves(root):
    batch = next(opened(root).test_batches(1, view=View(crop=20, resize=WHOLE[1])))
    expected = torch.tensor([(x, y, 0) for y in range(12, 32) for x in range(20, 40)]).view(20, 20, 3)
    torch.testing.assert_close(undone(batch.images)[0], expected.float(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("workers", [0, 2])
def test_ten_views_of_an_image_lie_next_to_each_other(root, workers):
    batches = list(opened(root, workers=workers).test_batches(4, view=View(crop=20, resize=WHOLE[1], ten=True)))
    assert [(len(batch.images), len(batch.labels)) for batch in batches] == [(40, 4), (30, 3)]
    assert [n for batch in batches for n in numbers(batch, every=10)] == list(range(7))
    for batch in batches:
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        for ten in undone(batch.images).round().view(-1, 10, 20, 20, 3):
            corners = [(int(view[0, 0, 0]), int(view[0, 0, 1])) for view in ten[:5]]
            assert corners == [(20, 12), (0, 0), (40, 0), (0, 24), (40, 24)]
            assert torch.equal(ten[5:], ten[:5].flip(2))
            assert len(ten[..., 2].unique()) == 1


def test_ten_views_begin_with_the_one(root):
    ten, one = (together(opened(root).test_batches(3, view=View(ten=ten)))[0] for ten in (True, False))
    assert torch.equal(ten[::10], one)


def test_workers_end_with_the_batches_that_nobody_wants_any_more(root):
    batches = opened(root, workers=2).train_batches(1, seed=0, epoch=0)
    next(batches)
    assert len(multiprocessing.active_children()) == 2
    batches.close()
    assert multiprocessing.active_children() == []


def test_mean_and_deviation_are_those_of_imagenet():
    torch.testing.assert_close(torch.tensor([MEAN, STD]) / 255, torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]))


def test_a_small_image_fills_every_view(tmp_path):
    for split in ("train", "val"):
        save(Image.new("RGB", (3, 2), (9, 8, 7)), tmp_path / split / "a" / "1.png")
    for scale in ("aspect", "shorter-side"):
        source = opened(tmp_path, scale=scale)
        for batch in (*source.train_batches(1, seed=0, epoch=0), *source.test_batches(1, view=View(ten=True))):
            assert undone(batch.images).round().unique(dim=0).flatten(0, 2).unique(dim=0).tolist() == [[9, 8, 7]]
