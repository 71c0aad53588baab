import math
from functools import partial

import pytest
import torch
from PIL import Image

from fused_preact.data.crops import Box, aspect, shorter_side, views
from fused_preact.data.source import generator
from tests.data.pictures import picture, pixels

WHOLE = (200, 120)


def drawn(choose, width, height, crop, times=4000):
    return torch.tensor([choose(width, height, crop, generator(0, 0, i)) for i in range(times)], dtype=torch.float64)


def quantiles(values):
    return torch.quantile(values.double(), torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0], dtype=torch.float64))


def test_aspect_boxes_are_whole_pixels_inside_the_image():
    boxes = drawn(aspect, *WHOLE, 32)
    assert torch.equal(boxes, boxes.round())
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor(WHOLE)).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_areas_and_ratios_of_aspect_are_uniform_where_every_box_fits():
    """In an image this large the first draw always fits if the area is at most 9/16 of it."""
    left, top, right, bottom = drawn(aspect, 10**5, 10**5, 32, times=8000).unbind(1)
    w, h = right - left, bottom - top
    area = w * h / 10**10
    small = area < 9 / 16
    torch.testing.assert_close(quantiles(area[small]), torch.linspace(0.08, 9 / 16, 5).double(), atol=0.02, rtol=0)
    # A side over that of the square is the factor or its inverse.
    factor = (w / h).sqrt()[small]
    one = torch.rand(10**5, generator=generator(1), dtype=torch.float64) * (4 / 3 - 3 / 4) + 3 / 4
    expected = torch.cat((one, 1 / one))
    torch.testing.assert_close(quantiles(factor), quantiles(expected), atol=0.02, rtol=0)


def test_places_of_aspect_are_uniform_up_to_both_edges():
    left, top, right, bottom = drawn(aspect, *WHOLE, 32).unbind(1)
    across, down = WHOLE[0] - (right - left), WHOLE[1] - (bottom - top)
    some = (across >= 20) & (down >= 20)
    assert abs(torch.corrcoef(torch.stack((left / across, top / down))[:, some])[0, 1]) < 0.05
    for start, room in ((left, across), (top, down)):
        torch.testing.assert_close(quantiles(start[some] / room[some]), torch.linspace(0, 1, 5).double(), atol=0.04, rtol=0)
        assert ((start == room) & (room > 0)).any()


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [
        pytest.param(1000, 10, Box(495, 0, 505, 10), id="wide"),
        pytest.param(10, 1000, Box(0, 495, 10, 505), id="high"),
    ],
)
def test_where_no_box_fits_aspect_takes_the_centre(width, height, expected):
    """The smallest box is 28 pixels wide and high."""
    assert aspect(width, height, 10, generator(0)) == expected


@pytest.mark.parametrize("choose", [aspect, shorter_side])
def test_an_image_of_one_pixel_has_a_box(choose):
    for left, top, right, bottom in drawn(choose, 1, 1, 32, times=50).tolist():
        assert 0 <= left < right <= 1
        assert 0 <= top < bottom <= 1


@pytest.mark.parametrize(("crop", "low", "high"), [(224, 256, 480), (112, 128, 240)])
@pytest.mark.parametrize("turned", [False, True], ids=["wide", "high"])
def test_shorter_sides_are_uniform_and_places_reach_both_edges(crop, low, high, turned):
    width, height = WHOLE[:: -1 if turned else 1]
    left, top, right, bottom = drawn(shorter_side, width, height, crop).unbind(1)
    shorter = left if turned else top
    sizes = crop * min(WHOLE) / ((right - left) if turned else (bottom - top))
    torch.testing.assert_close(sizes, sizes.round(), atol=1e-9, rtol=0)
    assert (sizes.min().round().item(), sizes.max().round().item()) == (low, high)
    torch.testing.assert_close(quantiles(sizes), torch.linspace(low, high, 5).double(), atol=8, rtol=0)
    room = min(WHOLE) * (1 - crop / sizes)
    torch.testing.assert_close(quantiles(shorter / room), torch.linspace(0, 1, 5).double(), atol=0.04, rtol=0)
    assert (left.min(), top.min(), right.max(), bottom.max()) == (0, 0, width, height)


def cut_from_the_resized(image, resize, crop):
    """Resized as a whole, then cut: centre, top left, top right, bottom left, bottom right."""
    w, h = (side * resize // min(image.size) for side in image.size)
    whole = image.resize((w, h), Image.Resampling.BICUBIC)
    corners = [(math.ceil((w - crop) / 2), math.ceil((h - crop) / 2)), (0, 0), (w - crop, 0), (0, h - crop), (w - crop, h - crop)]
    return [whole.crop((x, y, x + crop, y + crop)) for x, y in corners]


@pytest.mark.parametrize("size", [(60, 37), (37, 60), (48, 48)], ids=str)
@pytest.mark.parametrize("resize", [pytest.param(29, id="smaller"), pytest.param(64, id="larger"), pytest.param(24, id="no-room")])
def test_views_are_cut_from_the_resized_image(size, resize):
    # No overshoot of the filter leaves 0 .. 255 here: Pillow cuts it off between the two directions of a resize, the first of which varies.
    image = picture(torch.randint(80, 176, (size[1], size[0], 3), dtype=torch.uint8, generator=generator(0)))
    boxes = views(*size, 24, resize, corners=True)
    for box, expected in zip(boxes, cut_from_the_resized(image, resize, 24), strict=True):
        got = pixels(image.resize((24, 24), Image.Resampling.BICUBIC, box))
        assert (got.int() - pixels(expected).int()).abs().max() <= 1
    assert views(*size, 24, resize) == boxes[:1]


def test_draws_follow_the_generator_alone():
    for choose in (aspect, shorter_side):
        box = partial(choose, *WHOLE, 32)
        assert box(generator(0, 1, 2)) == box(generator(0, 1, 2))
        assert box(generator(0, 1, 2)) != box(generator(0, 1, 3))
