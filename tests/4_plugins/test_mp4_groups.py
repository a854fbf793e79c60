"""Decoded groups of pictures: every frame exact in whatever order, nothing decoded or read twice, bounded."""

from __future__ import annotations

import dataclasses
import functools
import io
import random
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import trio
from numpy.typing import NDArray

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import decode, frames, gops, render, visual  # noqa: E402
from vfs_mp4.selecting import window_of  # noqa: E402
from vfs_mp4.visual import Job  # noqa: E402

from vfs import (  # noqa: E402
    Damaged,
    Source,
    Unsupported,
    parse_derived,
)
from vfs.workers import configure, in_worker, open_workers  # noqa: E402

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


@functools.cache
def truth(name: str) -> list[Pixels]:
    """Every frame of a full decode."""
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


# ---------------------------------------------------------------- what is read and decoded


class CountingFile(io.BytesIO):
    """Samples as a worker reads them; knows how far it was read."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self.taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        self.taken += len(data)
        return data


def test_frames_come_out_while_the_rest_is_still_on_its_way() -> None:
    job, data = job_of(exact.sample("hevc"), "f2-f28.npy", spare=0)
    file: Any = CountingFile(data)
    frames_ = decode.shown_frames(job, file, sorted(job.pts)[2:28])
    next(frames_)
    assert file.taken < len(data) / 2
    assert sum(1 for _ in frames_) == 25


def test_neighbours_cost_the_samples_that_were_not_fed_and_no_frame_twice() -> None:
    """Bytes that the reader of each next frame takes; a frame that was put out takes none."""
    place, groups, taken = exact.sample("h264_no_b"), gops.Groups(), []
    for name in ("f10.jpg", "f11.jpg", "f12.jpg", "f13.jpg", "f12.jpg", "f11.jpg", "f10.jpg"):
        job, data = job_of(place, name)
        file: Any = CountingFile(data)
        groups.frame(job, file)
        taken.append(file.taken)
    job, _ = job_of(place, "f13.jpg")
    to_ten = sum(job.sizes[:11])
    assert taken[0] == to_ten
    assert taken[1] >= to_ten, "the second one decodes from the key frame once more"
    assert max(taken[2:4]) < to_ten / 2
    assert taken[4:] == [0, 0, 0]


def test_a_group_that_is_stepped_through_backwards_is_decoded_once() -> None:
    place, groups, taken = exact.sample("hevc"), gops.Groups(), []
    for rank in range(29, 19, -1):
        job, data = job_of(place, f"f{rank}.jpg")
        file: Any = CountingFile(data)
        groups.frame(job, file)
        taken.append(file.taken)
    assert taken[0] > 0
    assert sum(taken[2:]) == 0


def test_what_is_kept_is_bounded_and_goes_in_order_of_use() -> None:
    place = exact.sample("h264")
    size = truth("h264")[0].nbytes
    groups = gops.Groups(budget=6 * size)
    for rank in range(60):
        job, data = job_of(place, f"f{rank}.jpg")
        groups.frame(job, data)
        assert groups.nbytes <= 8 * size  # planes are padded
        standing = [group for group in groups._groups.values() if group.decoder is not None]
        assert len(standing) <= gops.DECODERS
    assert len(groups._groups) <= 2
    job, data = job_of(place, "f59.jpg")
    file: Any = CountingFile(data)
    groups.frame(job, file)
    assert file.taken == 0


def test_one_group_is_one_group_whatever_is_asked_of_it() -> None:
    """And an open group whose leading pictures are given to the decoder is another than one without."""
    groups = {job_of(exact.sample("h264"), f"f{rank}.jpg")[0].group for rank in range(30)}
    assert len(groups) == 1
    keys = {job_of(exact.sample("h264"), f"k{number}.jpg")[0].group for number in range(3)}
    assert len(keys) == 3
    assert groups < keys | groups


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("count", [150, pytest.param(2_000, marks=pytest.mark.slow)])
def test_many_frames_grow_neither_daemon_nor_worker(count: int) -> None:
    """Once both have what they keep anyway: code, the decoded groups within their budget, freed memory."""
    place = exact.sample("h264")
    job, _ = job_of(place, "f0.jpg")
    rng = random.Random(1)
    ranks = [rng.randrange(110) for _ in range(count)]
    jobs = {rank: job_of(place, f"f{rank}.jpg") for rank in range(110)}

    async def read(ranks: list[int]) -> None:
        for rank in ranks:
            job, data = jobs[rank]
            assert await in_worker(render.picture, job, "jpg", source=held(data), affinity=job.group)

    async def main() -> tuple[int, int]:
        async with open_workers():
            await read(list(range(110)) + ranks[:60])
            before = resident(), await in_worker(resident, affinity=job.group)
            await read(ranks)
            after = resident(), await in_worker(resident, affinity=job.group)
            return after[0] - before[0], after[1] - before[1]

    configure(isolate=False)  # this module and /proc are out of reach otherwise
    try:
        daemon, worker = trio.run(main)
    finally:
        configure(isolate=True)
    assert daemon < 16 << 20
    assert worker < 16 << 20


def held(data: bytes) -> Source:
    async def stream(offset: int, length: int) -> AsyncIterator[bytes]:
        yield data[offset : offset + length]

    return Source(stream, len(data), ahead=len(data))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# ---------------------------------------------------------------- errors, by name


def changed(job: Job, **fields: Any) -> Job:
    return dataclasses.replace(job, group=None, **fields)


def without_setup(stsd: bytes, box: bytes) -> bytes:
    """The sample entry with its decoder set-up under a name that nobody looks for."""
    assert stsd.count(box) == 1
    return stsd.replace(box, b"free")


@pytest.mark.parametrize(("name", "box"), [("h264", b"avcC"), ("hevc", b"hvcC")])
def test_missing_parameter_sets_are_named(name: str, box: bytes) -> None:
    job, data = job_of(exact.sample(name), "f3.jpg")
    bare = changed(job, stsd=without_setup(job.stsd, box))
    with pytest.raises(Damaged, match="no parameter sets in the sample description"):
        gops.Groups().frame(bare, data)


def test_empty_samples_are_named() -> None:
    job, _ = job_of(exact.sample("h264"), "f3.jpg")
    with pytest.raises(Damaged, match="nothing in the samples"):
        gops.Groups().frame(changed(job, sizes=(0,) * len(job.sizes)), b"")


def test_an_empty_sample_among_others_is_passed_over() -> None:
    """A frame that is not there, as in some screen recordings: the others are what they are."""
    job, data = job_of(exact.sample("h264_no_b"), "f3.jpg")
    hole = changed(job, sizes=(*job.sizes[:4], 0, *job.sizes[4:]), pts=(*job.pts[:4], 10**6, *job.pts[4:]))
    found = gops.Groups().frame(dataclasses.replace(hole, group=("x",)), data).to_ndarray()
    assert np.array_equal(found, truth("h264_no_b")[3])
    with pytest.raises(Damaged, match="the frame"):
        gops.Groups().frame(changed(hole, wanted=10**6), data)


def test_a_decoder_that_the_media_library_lacks_is_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(visual.DECODERS, "avc1", "no_such_decoder")
    job, data = job_of(exact.sample("h264"), "f3.jpg")
    with pytest.raises(Unsupported, match="no decoder no_such_decoder"):
        gops.Groups().frame(job, data)


# ---------------------------------------------------------------- the trap of PyAV 18

#: Drops decoders in the middle of everything, as errors, evictions and the end of the process do.
DROPS = """
import gc, sys
sys.path[:0] = {paths!r}
import test_mp4_groups as t
job, data = t.job_of(t.exact.sample("h264"), "f20.jpg")
if {ours}:
    groups = t.gops.Groups()
    for number in (20, 21, 22):
        job, data = t.job_of(t.exact.sample("h264"), f"f{{number}}.jpg")
        groups.frame(job, data)
    assert any(group.decoder is not None for group in groups._groups.values())
    half = t.decode.shown_frames(job, data, job.pts)
    next(half)
    del half, groups
else:
    import av
    from fractions import Fraction
    context = av.CodecContext.create("h264", "r")
    context.thread_type, context.thread_count = "FRAME", 4
    context.extradata = t.decode.read_entry(job).setup
    samples = t.decode.Samples(job, data)
    for row in range(10):
        packet = av.Packet(samples[row])
        packet.pts, packet.time_base = job.pts[row], Fraction(1, job.timescale)
        context.decode(packet)
    del context
gc.collect()
print("through")
"""


def drops(*, ours: bool) -> str:
    """What the program says within its time; "" when it hangs."""
    code = DROPS.format(paths=sys.path, ours=ours)
    try:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=8, check=True)
    except subprocess.TimeoutExpired:
        return ""
    return done.stdout.decode().strip()


def test_our_decoders_are_dropped_without_a_hang() -> None:
    assert drops(ours=True) == "through"


@pytest.mark.slow
def test_the_trap_is_still_there() -> None:
    """When this fails, the media library was mended, and frame threads may be thought of again."""
    assert drops(ours=False) == ""
