"""Hashes of coded pictures, landmarks of sound, votes for an offset, nearest vectors: on made-up numbers."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vfs_search import bits, engine, features, hashes, landmarks
from vfs_search.align import Vote, align
from vfs_search.catalog import norms

# ---------------------------------------------------------------- coded pictures


def units(*bodies: bytes) -> tuple[bytes, bytes]:
    """The same units with lengths and with start codes."""
    with_lengths = b"".join(struct.pack(">I", len(body)) + body for body in bodies)
    with_codes = b"\0\0\0\1" + b"\0\0\1".join(bodies)
    return with_lengths, with_codes


@given(st.lists(st.binary(min_size=2, max_size=40), min_size=1, max_size=4))
def test_framing_does_not_change_the_hash(bodies: list[bytes]) -> None:
    """MP4's lengths and a transport stream's start codes; parameter sets and SEI come and go."""
    slices = [b"\x41" + body.replace(b"\0", b"\1") for body in bodies]
    with_lengths, _ = units(b"\x06\x05sei", *slices)
    _, with_codes = units(b"\x67sps", b"\x68pps", *slices)
    assert hashes.picture("h264", 4, with_lengths) == hashes.picture("h264", 0, with_codes)
    another = with_lengths[:-1] + bytes([with_lengths[-1] % 254 + 1])
    assert hashes.picture("h264", 4, with_lengths) != hashes.picture("h264", 4, another)


def test_the_length_of_lengths_is_read_from_the_setup() -> None:
    assert hashes.length_size("h264", b"\x01\x64\x00\x1f\xff") == 4
    assert hashes.length_size("h264", b"\x01\x64\x00\x1f\xfd") == 2
    assert hashes.length_size("hevc", b"\x01" + bytes(20) + b"\xff") == 4
    assert hashes.length_size("h264", b"\0\0\0\1\x67") == 0
    assert hashes.length_size("h264", b"") == 0


def test_coded_votes_agree_on_an_offset() -> None:
    chance = np.random.default_rng(1)
    known = chance.integers(0, 2**63, 500).astype(np.uint64)
    times = np.arange(500) / 25
    order = np.argsort(known)
    asked = known[100:150]
    votes, offset = hashes.votes(asked, np.arange(50) / 25, known[order], times[order])
    assert (votes, round(offset, 3)) == (50, 4.0)
    assert (
        hashes.votes(
            chance.integers(0, 2**63, 50).astype(np.uint64), np.arange(50.0), known[order], times[order]
        )[0]
        == 0
    )


# ---------------------------------------------------------------- sound


def tones(seed: int, seconds: float) -> NDArray[np.float64]:
    chance = np.random.default_rng(seed)
    time = np.arange(int(seconds * landmarks.RATE)) / landmarks.RATE
    pitch = chance.uniform(200, 3500, (int(seconds * 8) + 1, 3))[(time * 8).astype(int)]
    made: NDArray[np.float64] = np.sin(2 * np.pi * pitch * time[:, None]).sum(axis=1)
    return made


def by_hash(found: landmarks.Landmarks) -> landmarks.Landmarks:
    return found[np.argsort(found[:, 0], kind="stable")]


@pytest.mark.parametrize("noise", [0.0, 0.08])
def test_a_stretch_of_sound_is_found_to_the_tenth(noise: float) -> None:
    whole, other = tones(1, 20), tones(2, 20)
    part = whole[7 * landmarks.RATE : 11 * landmarks.RATE]
    part = part * 0.3 + noise * np.random.default_rng(3).standard_normal(len(part))
    question = landmarks.landmarks(part)
    votes, offset, runner = landmarks.votes(question, by_hash(landmarks.landmarks(whole)))
    assert votes > 30
    assert votes > 4 * runner
    assert abs(offset - 7) < 0.1
    assert landmarks.votes(question, by_hash(landmarks.landmarks(other)))[0] < 12


def test_too_little_sound_has_no_landmarks() -> None:
    assert landmarks.landmarks(np.zeros(500)).shape == (0, 2)
    assert landmarks.landmarks(np.zeros(16000)).shape[1] == 2
    none = np.empty((0, 2), np.uint32)
    assert landmarks.votes(none, none) == (0, 0.0, 0)


# ---------------------------------------------------------------- votes


def votes_of(rows: list[tuple[int, float, int, float, float]]) -> Vote:
    columns: list[Any] = [np.array(column) for column in zip(*rows, strict=True)]
    picture, asked, video, time, score = columns
    return Vote(picture, asked, video, time, score, np.arange(len(rows)))


@pytest.mark.parametrize("speed", [1.0, 0.5])
def test_pictures_that_agree_outvote_better_ones_that_do_not(speed: float) -> None:
    """Twelve of .9 at one offset, and of .95 all over another video."""
    chance = np.random.default_rng(4)
    true = [(n, n / 2, 0, 30 + speed * n / 2, 0.90) for n in range(12)]
    false = [(n, n / 2, 1, float(chance.uniform(0, 90)), 0.95) for n in range(12)]
    first, *_ = align(votes_of(true + false), 12, 6.0)
    assert (first.video, first.votes, first.coverage, first.speed) == (0, 12, 1.0, speed)
    assert abs(first.offset - 30) < 0.01
    assert abs(first.start - 30) < 0.3
    assert abs(first.end - (30 + 6 * speed)) < 0.3
    assert first.margin > 1.2


def test_a_part_of_the_question_is_a_shorter_stretch() -> None:
    """Only its last four of ten seconds are there."""
    (first, *_) = align(votes_of([(n, n / 2, 3, 50 + n / 2, 0.95) for n in range(12, 20)]), 20, 10.0)
    assert abs(first.start - 55.75) < 0.3
    assert abs(first.end - 60) < 0.3


def test_no_votes_are_no_result() -> None:
    assert align(votes_of([(0, 0.0, 0, 0.0, 0.9)]), 0, 0.0) == []


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 3), st.floats(0, 1e5), st.floats(0.8, 1)),
        min_size=1,
        max_size=60,
    )
)
def test_any_votes_give_stretches_in_order(rows: list[tuple[int, int, float, float]]) -> None:
    found = align(votes_of([(p, p / 2, video, time, score) for p, video, time, score in rows]), 10, 5.0)
    assert found
    assert all(0 <= one.start <= one.end + 1e-6 and 0 < one.coverage <= 1 for one in found)
    assert all(one.video in {row[1] for row in rows} for one in found)


# ---------------------------------------------------------------- nearest


def some(count: int, seed: int) -> features.Octets:
    """Vectors as soft pictures give them."""
    noise = np.random.default_rng(seed).standard_normal((count, 64, 64)).astype(np.float32)
    soft = noise.cumsum(axis=1).cumsum(axis=2)
    soft -= soft.min(axis=(1, 2), keepdims=True)
    soft *= 255 / soft.max(axis=(1, 2), keepdims=True)
    return features.quantised(features.grad512(soft))


def test_exact_is_what_a_sort_of_all_cosines_gives() -> None:
    stored = some(300, 5)
    queries = features.restored(stored[:4]) + 0.01
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    alive = np.ones(300, np.bool_)
    alive[0] = False
    near = engine.exact(stored, norms(stored), alive, queries, 7)
    cosines = queries @ features.restored(stored).T
    cosines[:, 0] = -1
    order = np.argsort(-cosines, axis=1)[:, :7]
    assert np.allclose(near.scores, np.take_along_axis(cosines, order, axis=1), atol=1e-5)
    assert (near.rows[1:, 0] == [1, 2, 3]).all()
    assert 0 not in near.rows


def test_what_is_below_the_least_is_left_out() -> None:
    stored = some(50, 6)
    near = engine.exact(
        stored, norms(stored), np.ones(50, np.bool_), features.restored(stored[:1]), 5, 0.9999
    )
    assert near.rows[0].tolist() == [0, -1, -1, -1, -1]


def test_bits_keep_what_is_near() -> None:
    """A changed picture differs in fewer bits than any other one; the coarse look finds it."""
    stored = some(2000, 7)
    changed = np.clip(
        stored[:20].astype(np.int32) + np.random.default_rng(8).integers(-6, 7, (20, 512)), 0, 255
    )
    queries = features.restored(changed.astype(np.uint8))
    coded = bits.of(stored)
    near = engine.coarse(stored, norms(stored), coded, np.ones(2000, np.bool_), queries, 1)
    assert near.rows[:, 0].tolist() == list(range(20))
    apart = bits.distances(bits.of(queries[:1] * 255)[0], coded)
    assert int(apart.argmin()) == 0
    assert apart[0] < 40 < np.median(apart)


@given(st.integers(0, 2**32 - 1))
def test_bits_are_counted_right(seed: int) -> None:
    """Against the bits one by one; all of them may differ."""
    chance = np.random.default_rng(seed)
    coded = chance.integers(0, 2**64, (9, bits.WORDS), np.uint64)
    query = coded[0]
    coded[1] = ~query
    expected = np.unpackbits((coded ^ query).view(np.uint8), axis=1).sum(axis=1)
    assert bits.distances(query, coded).tolist() == expected.tolist()
    assert bits.distances(query, coded)[:2].tolist() == [0, bits.BITS]


def test_an_empty_index_has_nothing_near() -> None:
    none = np.empty((0, 512), np.uint8)
    queries = features.restored(some(2, 9))
    assert (engine.exact(none, norms(none), np.empty(0, np.bool_), queries, 3).rows == -1).all()
