"""Decoded groups of pictures: every frame exact in whatever order, nothing decoded or read twice, bounded."""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import decode, frames, gops  # noqa: E402
from vfs_mp4.selecting import window_of  # noqa: E402
from vfs_mp4.visual import Job  # noqa: E402

from vfs import parse_derived  # noqa: E402

Pixels = NDArray[Any]
#: By default those that differ in how they are decoded.
QUICK = ("h264", "h264_open_gop", "hevc_open_gop_fragmented", "vfr_fragmented")
ALIKE = ("opus", "silent_mov", "delayed_video", "rotated_wide_pixels")
NAMES = [
    pytest.param(n, marks=[pytest.mark.slow] * (n not in QUICK)) for n in exact.SAMPLES if n not in ALIKE
]


def job_of(place: MemoryPlace, name: str, spare: int = frames.SPARE) -> tuple[Job, bytes]:
    """The job for the frames of a selection, and its bytes."""

    async def main() -> tuple[Job, bytes]:
        derived = parse_derived(name)
        assert derived is not None
        window = await window_of(place, derived.selection)
        layout, job = frames.coded(window, spare=spare)
        return job, exact.content(place, layout)

    return trio.run(main)


def truth(name: str) -> list[Pixels]:
    import io

    import av

    with av.open(io.BytesIO(exact.sample(name).data), "r") as container:
        return [frame.to_ndarray() for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", NAMES)
def test_frames_are_exact_in_any_order(name: str) -> None:
    """Steps to and fro, and leaps, through one set of kept groups with room for some of them."""
    place, wanted, rng = exact.sample(name), truth(name), random.Random(name)
    groups = gops.Groups(budget=20 * wanted[0].nbytes)
    at, walk = rng.randrange(len(wanted)), []
    for step in rng.choices((1, 1, 1, -1, 2, -3, 40, -40), k=40):
        at = (at + step) % len(wanted)
        walk.append(at)
    walk += [len(wanted) - 3, len(wanted) - 2, len(wanted) - 1, 0, 1]
    for rank in walk:
        job, data = job_of(place, f"f{rank}.jpg")
        found = groups.frame(job, data).to_ndarray()
        assert np.array_equal(found, wanted[rank]), (rank, walk)
        assert groups.nbytes <= 22 * wanted[0].nbytes


@pytest.mark.parametrize("name", NAMES)
def test_a_range_comes_out_in_one_pass(name: str) -> None:
    place, wanted = exact.sample(name), truth(name)
    job, data = job_of(place, "f7-f48.npy", spare=0)
    asked = [pts for pts in job.pts if pts >= job.wanted]
    found = list(decode.shown_frames(job, data, asked))
    ranks = sorted(asked)
    assert [pts for pts, _ in found] == [pts for pts in ranks if pts in {p for p, _ in found}]
    for (_, frame), rank in zip(found[:41], range(7, 48), strict=True):
        assert np.array_equal(frame.to_ndarray(), wanted[rank])
    some = ranks[3:41:9]
    sparse = list(decode.shown_frames(job, data, some))
    assert [pts for pts, _ in sparse] == some
    for (_, frame), rank in zip(sparse, range(10, 48, 9), strict=True):
        assert np.array_equal(frame.to_ndarray(), wanted[rank])
