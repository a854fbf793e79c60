"""The descriptors: published vectors, exact symmetries, what must and must not change them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vfs_search import features

from vfs import Unsupported


def pattern() -> NDArray[np.float32]:
    y, x = np.mgrid[0:64, 0:64]
    found: NDArray[np.float32] = ((3 * x + 5 * y + (x * y) // 7) % 256).astype(np.float32)
    return found


def test_grad512_of_the_published_picture() -> None:
    (vector,) = features.grad512(pattern()[None])
    assert np.allclose(vector[:8], [0.01516, 0.05077, 0.03684, 0, 0, 0, 0, 0], atol=1e-5)
    last = [0.02562, 0.08706, 0.04042, 0, 0.05136, 0.09381, 0.04995, 0]
    assert np.allclose(vector[-8:], last, atol=1e-5)
    assert abs(vector.sum() - 13.559) < 1e-3
    assert (int(vector.argmax()), round(float(vector.max()), 5)) == (213, 0.14305)


def test_rep0st_of_plain_colours() -> None:
    """As OpenCV gives them; colours here are R, G, B."""
    expected = {
        (255, 0, 0): (0, 1, 1), (0, 255, 0): (0.117647, 1, 1), (0, 0, 255): (0.235294, 1, 1),
        (60, 120, 30): (0.098039, 0.75, 0.470588), (255, 0, 10): (0.350634, 1, 1),
        (0, 0, 0): (0, 0, 0), (255, 255, 255): (0, 0, 1),
    }  # fmt: skip
    for colour, (hue, saturation, value) in expected.items():
        picture = np.broadcast_to(np.array(colour, np.uint8), (1, 20, 30, 3))
        (vector,) = features.rep0st108(picture)
        assert np.allclose(vector, np.repeat([hue, saturation, value], 36), atol=1e-5), colour


def test_rep0st_of_the_published_gradient() -> None:
    y, x = np.mgrid[0:36, 0:48]
    picture = np.stack([3 * (x + y) % 256, 7 * y % 256, 5 * x % 256], axis=2).astype(np.uint8)
    (vector,) = features.rep0st108(picture[None])
    assert np.allclose(vector[:6], [0, 0.271324, 0.270956, 0.270833, 0.270772, 0.270735], atol=1e-4)
    assert np.allclose(vector[36:42], [0.027778, 0.695652, 0.820513, 0.872727, 0.901408, 0.919540], atol=1e-4)
    assert np.allclose(vector[72:78], [0.070588, 0.225490, 0.382353, 0.539216, 0.696078, 0.852941], atol=1e-4)
    assert abs(vector.sum() - 46.0206) < 1e-3
    assert abs(float(np.linalg.norm(vector)) - 5.40467) < 1e-4


def test_rep0st_refuses_what_it_is_not_defined_for() -> None:
    with pytest.raises(Unsupported):
        features.rep0st108(np.zeros((1, 5, 40, 3), np.uint8))


def test_rep0st_score_is_the_distance_over_the_longest() -> None:
    one = np.zeros((1, 108), np.float32)
    assert np.allclose(features.rep0st_score(one, np.ones((1, 108), np.float32)), 0, atol=1e-6)
    assert features.rep0st_score(one, one)[0, 0] == 1


pictures = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).integers(0, 256, (1, 64, 64)).astype(np.float32)
)


@settings(max_examples=25, deadline=None)
@given(pictures)
def test_the_mirror_image_is_a_turn_of_the_vector(picture: NDArray[np.float32]) -> None:
    """Exactly: a mirrored query needs no pixels."""
    plain, turned = features.grad512(picture), features.grad512(picture[:, :, ::-1])
    assert np.allclose(features.mirror(plain), turned, atol=1e-5)
    assert np.allclose(features.mirror(features.mirror(plain)), plain)


@settings(max_examples=25, deadline=None)
@given(pictures, st.floats(0.2, 1.0), st.floats(0, 40))
def test_gain_and_lift_do_not_matter(picture: NDArray[np.float32], gain: float, lift: float) -> None:
    changed = features.grad512(picture * np.float32(gain) + np.float32(lift))
    assert float((changed * features.grad512(picture)).sum()) > 0.9999


@settings(max_examples=20, deadline=None)
@given(pictures)
def test_quantised_vectors_lose_next_to_nothing(picture: NDArray[np.float32]) -> None:
    vector = features.grad512(picture)
    assert float((features.restored(features.quantised(vector)) * vector).sum()) > 0.998


def test_a_flat_picture_is_like_nothing() -> None:
    (vector,) = features.grad512(np.full((1, 64, 64), 90, np.float32))
    assert not vector.any()
    assert not features.restored(features.quantised(vector[None])).any()


def test_area_keeps_the_mean_and_divides_exactly() -> None:
    picture = np.arange(48 * 36, dtype=np.float32).reshape(1, 36, 48)
    small = features.area(picture, 6, 6)
    assert np.allclose(small[0], picture[0].reshape(6, 6, 6, 8).mean(axis=(1, 3)), rtol=1e-5)
    assert np.allclose(features.area(picture, 7, 5).mean(), picture.mean(), rtol=1e-4)


def test_borders_are_cut_and_dark_scenes_are_not_cut_away() -> None:
    picture = np.zeros((90, 160), np.float32)
    picture[10:80, 20:140] = 120
    assert features.trimmed(picture).shape == (70, 120)
    dark = np.zeros((90, 160), np.float32)
    assert features.trimmed(dark).shape == dark.shape
    speck = np.zeros((90, 160), np.float32)
    speck[40:44, 60:64] = 200
    assert features.trimmed(speck).shape == speck.shape


def test_windows_cover_the_picture() -> None:
    boxes = features.windows(144, 256)
    assert len(boxes) == len(features.window_names(12)) == 12
    assert boxes[0] == (0, 144, 0, 256)
    assert (boxes[3][2], boxes[-1][3]) == (0, 256)
    assert all(0 <= t < b <= 144 and 0 <= left < r <= 256 for t, b, left, r in boxes)
    assert len(features.windows(256, 144)) == 1


def soft(count: int, height: int, width: int) -> NDArray[np.float32]:
    """Pictures with edges of every direction, and no noise."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) / height
    chance = np.random.default_rng(3)
    found = np.zeros((count, height, width), np.float32)
    for picture in found:
        for across, down, phase in chance.uniform(-9, 9, (12, 3)):
            picture += np.sin(across * x + down * y + phase)
    found -= found.min()
    found *= 255 / found.max()
    return found


@pytest.mark.parametrize(
    ("height", "width", "least"), [(128, 216, 0.99999), (144, 256, 0.99), (90, 250, 0.98)]
)
def test_strips_are_what_each_window_is_by_itself(height: int, width: int, least: float) -> None:
    """To the bit where a strip's edges are whole pixels, else as near as the moved edge lets it be."""
    pictures = soft(6, height, width)
    found = features.describe_windows(pictures)
    boxes = features.windows(height, width)[1:]
    assert found.shape == (6, 11, 512)
    for number, (top, bottom, left, right) in enumerate(boxes):
        alone = features.grad512(features.area(pictures[:, top:bottom, left:right], 64, 64))
        cosines = (found[:, number] * alone).sum(axis=1)
        assert cosines.min() > least, number
    assert np.allclose(features.describe_whole(pictures), features.grad512(features.area(pictures, 64, 64)))


def test_portrait_pictures_have_no_windows() -> None:
    assert features.describe_windows(soft(2, 256, 144)).shape == (2, 0, 512)
