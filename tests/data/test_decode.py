import struct
import zlib

import pytest
import torch
from PIL import Image

from fused_preact.data.crops import Box
from fused_preact.data.decode import COMPONENTS, EIGENVALUES, Drawn, Look, Numbered, read
from fused_preact.data.source import DataError, generator
from tests.data.pictures import pixels, ramp, save, seen

CROP = 8


def taken(path, *boxes, crop=CROP, **look):
    """The crops (V, crop, crop, 3) of a file."""
    content, _ = read(Numbered(str(path), 0, 0), crop, lambda width, height, number: Look(boxes or [Box(0, 0, width, height)], **look))
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, crop, crop, 3)


def test_boxes_that_keep_their_size_are_the_pixels_themselves(tmp_path):
    path = save(ramp(60, 40, blue=7), tmp_path / "a.png")
    first, second = taken(path, Box(0, 0, 8, 8), Box(31, 17, 39, 25))
    whole = pixels(ramp(60, 40, blue=7))
    assert torch.equal(first, whole[:8, :8])
    assert torch.equal(second, whole[17:25, 31:39])
    (mirrored,) = taken(path, Box(31, 17, 39, 25), mirrored=True)
    assert torch.equal(mirrored, second.flip(1))


@pytest.mark.parametrize(
    ("mode", "fill", "suffix", "expected"),
    [
        pytest.param("L", 90, "png", (90, 90, 90), id="grey"),
        pytest.param("L", 90, "jpg", (90, 90, 90), id="grey-jpeg"),
        pytest.param("1", 1, "png", (255, 255, 255), id="one-bit"),
        pytest.param("LA", (90, 10), "png", (90, 90, 90), id="grey-alpha"),
        pytest.param("RGBA", (200, 100, 50, 0), "png", (200, 100, 50), id="alpha-is-dropped"),
        pytest.param("RGBA", (200, 100, 50, 0), "webp", (200, 100, 50), id="webp"),
        pytest.param("P", 3, "bmp", (10, 20, 30), id="palette"),
        pytest.param("CMYK", (0, 128, 255, 0), "jpg", (255, 127, 0), id="cmyk"),
        pytest.param("I;16", 0x8000, "png", (128, 128, 128), id="sixteen-bits"),
        pytest.param("I", 0xFFFF, "pgm", (255, 255, 255), id="sixteen-bits-as-integers"),
    ],
)
def test_other_modes_become_rgb(tmp_path, mode, fill, suffix, expected):
    image = Image.new(mode, (20, 20), fill)
    if mode == "P":
        image.putpalette([0, 0, 0] * 3 + [10, 20, 30])
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    got = taken(save(image, tmp_path / f"a.{suffix}", **options))
    # JPEG's own colours are a step off.
    assert (got.int() - torch.tensor(expected)).abs().max() <= (2 if suffix == "jpg" else 0)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def test_sixteen_bits_a_channel_keep_the_upper_eight(tmp_path):
    """Pillow reads such a file and doesn't write it."""
    rows = b"".join(b"\0" + struct.pack(">HHH", 0x1234, 0x80FF, 0xFFFF) * 4 for _ in range(4))
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )
    assert taken(tmp_path / "a.png").unique(dim=2).flatten().tolist() == [0x12, 0x80, 0xFF] * CROP


@pytest.mark.filterwarnings("error")
def test_a_palette_with_transparent_colours_is_read_without_a_warning(tmp_path):
    image = Image.new("P", (20, 20), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    path = save(image, tmp_path / "a.png", transparency=bytes([255, 128]))
    assert torch.equal(taken(path), torch.tensor([10, 20, 30], dtype=torch.uint8).expand(1, CROP, CROP, 3))


def test_the_orientation_in_exif_is_not_heeded(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    plain, tagged = save(ramp(40, 20), tmp_path / "a.png"), save(ramp(40, 20), tmp_path / "b.png", exif=turned)
    with Image.open(tagged) as image:
        assert image.getexif()[0x0112] == 6
    assert torch.equal(taken(plain), taken(tagged))


@pytest.mark.parametrize("size", [(1, 1), (5, 3)], ids=str)
def test_small_images_are_enlarged(tmp_path, size):
    path = save(Image.new("RGB", size, (9, 8, 7)), tmp_path / "a.png")
    assert torch.equal(taken(path), torch.tensor([9, 8, 7], dtype=torch.uint8).expand(1, CROP, CROP, 3))


@pytest.mark.parametrize("size", [(256, 250), (253, 255)], ids=str)
@pytest.mark.parametrize(
    ("part", "decoded"),
    [
        pytest.param(Box(0, 0, 250, 250), 1 / 8, id="all"),
        pytest.param(Box(60.5, 20.25, 190, 150), 1 / 8, id="an-eighth"),
        pytest.param(Box(101, 90, 170, 160), 1 / 4, id="a-quarter"),
        pytest.param(Box(17, 3, 60, 200), 1 / 2, id="a-half"),
        pytest.param(Box(200, 200, 231, 231), 1, id="whole"),
    ],
)
def test_large_jpegs_are_decoded_smaller_and_cut_at_the_same_place(tmp_path, monkeypatch, size, part, decoded):
    path = save(ramp(*size), tmp_path / "a.jpg", quality=100, subsampling=0)
    sizes, resize = [], Image.Image.resize
    monkeypatch.setattr(Image.Image, "resize", lambda image, *args: sizes.append(image.size) or resize(image, *args))
    (got,) = taken(path, part)
    assert sizes == [tuple(-(-side * decoded // 1) for side in size)]
    # The ends of a row of the eighth part are one step of the ramp, 8 pixels, from where the filter would look further.
    inner = slice(1, -1)
    torch.testing.assert_close(got[inner, inner, :2].float(), seen(part, CROP)[inner, inner], atol=2.5, rtol=0)


def broken(kind, folder):
    path = folder / ("broken.tiff" if kind == "float" else "broken.jpg")
    if kind == "float":
        return save(Image.new("F", (20, 20), 0.5), path)
    content = save(ramp(100, 100), folder / "whole.jpg").read_bytes()
    path.write_bytes({"truncated": content[:-200], "header-only": content[:20], "text": b"<html>Not found", "empty": b""}[kind])
    return path


@pytest.mark.parametrize("kind", ["truncated", "header-only", "text", "empty", "float"])
def test_what_cannot_be_decoded_is_one_sentence_that_names_the_file(tmp_path, kind):
    path = broken(kind, tmp_path)
    with pytest.raises(DataError) as caught:
        taken(path)
    assert str(caught.value).startswith(f"expected an image that can be decoded in {path}, got ")
    assert "\n" not in str(caught.value)


def test_no_program_is_run_for_a_file(tmp_path, monkeypatch):
    """Pillow would have Ghostscript draw this, by whatever name it goes."""
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n(x) print\n%%EOF\n")
    asked = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args: asked.append(args) or Image.new("RGB", (100, 100)).im)
    with Image.open(path) as image:
        image.load()
    assert asked
    asked.clear()
    with pytest.raises(DataError, match=f"^expected an image that can be decoded in {path}, got cannot identify image file"):
        taken(path)
    assert not asked


@pytest.mark.parametrize("suffix", ["gif", "jpg", "png", "tif", "webp", "bmp", "ppm"])
def test_what_a_file_is_counts_and_not_what_it_is_called(tmp_path, suffix):
    """As one of ImageNet's, n02105855_2933.JPEG, is a PNG."""
    options = {"lossless": True} if suffix == "webp" else {}
    path = save(Image.new("RGB", (20, 20), (9, 8, 7)), tmp_path / f"a.{suffix}", **options).rename(tmp_path / "b.jpeg")
    assert (taken(path).int() - torch.tensor([9, 8, 7])).abs().max() <= 2


def looks(times=6000, **changes):
    choose = Drawn(**{"crop": 8, "scale": "aspect", "lighting": True, "seed": 0, "epoch": 0} | changes)
    return [choose(50, 40, number) for number in range(times)]


def test_half_of_the_images_are_mirrored_whatever_their_box():
    drawn = looks()
    mirrored = torch.tensor([look.mirrored for look in drawn]).double()
    assert abs(mirrored.mean() - 0.5) < 0.02
    left = torch.tensor([look.boxes[0].left for look in drawn], dtype=torch.float64)
    assert abs(torch.corrcoef(torch.stack((mirrored, left)))[0, 1]) < 0.04


def test_colours_vary_along_the_principal_components():
    colours = torch.tensor([look.colour for look in looks()], dtype=torch.float64)
    components = torch.tensor(COMPONENTS, dtype=torch.float64)
    strengths = torch.tensor(EIGENVALUES, dtype=torch.float64) * 0.1 * 255
    expected = components @ torch.diag(strengths**2) @ components.T
    torch.testing.assert_close(torch.cov(colours.T), expected, atol=0.06 * expected.max().item(), rtol=0)
    assert colours.mean(0).abs().max() < 0.15
    torch.testing.assert_close(components.T @ components, torch.eye(3).double(), atol=2e-3, rtol=0)


def test_lighting_changes_no_other_draw():
    plain = looks(20, lighting=False)
    assert plain == [look._replace(colour=None) for look in looks(20)]


@pytest.mark.parametrize("changes", [{"seed": 1}, {"epoch": 1}], ids=str)
def test_every_seed_and_epoch_draws_anew(changes):
    assert all(a != b for a, b in zip(looks(20), looks(20, **changes), strict=True))


def test_the_look_is_drawn_after_the_order_from_another_generator():
    """An image numbered 0 in epoch 0 must not share the draws of the epoch's order."""
    assert generator(0, 0).initial_seed() != generator(0, 0, 0).initial_seed()
