"""Sources of kinds that other files do not have: codecs, colour, more than 4 GiB, several tracks."""

from __future__ import annotations

import io
import os
import random
import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import trio

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import mp4_exact as exact  # noqa: E402
import mp4_sound  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from mp4_sparse import SparsePlace, far_away  # noqa: E402
from vfs_mp4 import source  # noqa: E402
from vfs_mp4.model import Track  # noqa: E402

#: Pictures of codecs that no other generated file has, progressive and in fragments.
CODECS: dict[str, dict[str, Any]] = {
    "mpeg-4 part 2": {"codec": "mpeg4", "bframes": 2},
    "av1": {"codec": "libsvtav1"},
    "vp9": {"codec": "libvpx-vp9", "options": {"deadline": "realtime", "cpu-used": "8"}},
}
#: Sounds beside pictures.
SOUNDS = ("ac3", "eac3", "alac", "libopus", "pcm_s16le")


def made(path: Path, **options: Any) -> MemoryPlace:
    exact.encode(path, frames=60, gop=20, size=(160, 90), **options)
    return MemoryPlace(path.read_bytes(), f"games/{path.name}")


def times(truth: exact.Truth, seed: str, count: int) -> list[tuple[Fraction, int]]:
    """Moments at which frames come up, and their ranks."""
    picks = random.Random(seed)
    ranks = [0, len(truth.frames) - 1, *(picks.randrange(len(truth.frames)) for _ in range(count))]
    return [(truth.frames[rank].time - truth.zero, rank) for rank in ranks]


def said(time: Fraction) -> str:
    nanos = -int(-time * 10**9 // 1)
    return f"{nanos // 10**9}.{nanos % 10**9:09d}s"


def test_an_encoder_leaves_the_priority_of_the_tests_as_it_was(tmp_path: Path) -> None:
    """SVT-AV1 raises it to real time, for all that is started afterwards, too."""
    before = os.sched_getscheduler(0)
    made(tmp_path / "x.mp4", audio=False, codec="libsvtav1")
    assert os.sched_getscheduler(0) == before


@pytest.mark.parametrize("fragmented", [False, True], ids=["progressive", "fragmented"])
@pytest.mark.parametrize("name", CODECS)
def test_frames_and_clips_of_every_codec(tmp_path: Path, name: str, fragmented: bool) -> None:
    place = made(tmp_path / "x.mp4", fragmented=fragmented, audio=False, **CODECS[name])
    truth = exact.truth_of(place)
    for time, rank in times(truth, name, 4):
        data, about = trio.run(exact.spliced, place, f"{said(time)}.mp4")
        assert exact.decode(data)[int(about["start_frame_index"])].hash == truth.frames[rank].hash
        data, _ = trio.run(exact.spliced, place, f"{said(time)}+0.5s.mp4")
        start = Fraction(said(time)[:-1])
        first, after = truth.between(start, start + Fraction(1, 2))
        assert [frame.hash for frame in exact.decode(data)] == truth.hashes(first, after)


@pytest.mark.parametrize("codec", SOUNDS)
def test_sound_of_every_codec_goes_with_the_pictures(tmp_path: Path, codec: str) -> None:
    """As long as the pictures, and the packets are the source's own."""
    suffix = "mov" if codec.startswith("pcm") else "mp4"
    place = made(tmp_path / f"x.{suffix}", audio_codec=codec)
    data, _ = trio.run(exact.spliced, place, "0.5s-1.5s.mp4")
    clip = trio.run(source.open_movie, MemoryPlace(data))
    assert [t.handler for t in clip.tracks] == ["vide", "soun"]
    known, heard = trio.run(source.open_movie, place).tracks[1], clip.tracks[1]
    assert (heard.boxes or {})["stsd"] == (known.boxes or {})["stsd"]
    packets = set(samples(place.data, known))
    assert all(sample in packets for sample in samples(data, heard))
    assert abs(float(clip.duration) - 1) < 0.001
    if codec not in ("ac3", "eac3", "libopus"):  # Those leave the end of the last packet to be heard.
        line = mp4_sound.decode(data)
        assert 0 <= line.length - line.rate < 5000


def samples(data: bytes, track: Track) -> list[bytes]:
    """The coded samples of a track; of uncompressed sound each on its own."""
    rows = zip(track.samples.offset.tolist(), track.samples.size.tolist(), strict=True)
    whole = [data[at : at + size] for at, size in rows]
    unit = track.unit
    return [w[i : i + unit] for w in whole for i in range(0, len(w), unit)] if unit else whole


def test_boxes_of_colour_hdr_and_dolby_vision_are_kept(tmp_path: Path) -> None:
    """The whole sample entry is the source's: mdcv, clli, clap, dvcC, dvvC, and what nobody knows."""
    plain = made(tmp_path / "x.mp4", codec="libx265", audio=False, faststart=False)
    dolby = bytes([1, 0, 8 << 1, 5 << 3 | 5, 0x10]) + bytes(19)
    more = b"".join(
        struct.pack(">I4s", 8 + len(body), kind) + body
        for kind, body in (
            (b"mdcv", struct.pack(">8H2I", *[1] * 8, 10_000_000, 50)),
            (b"clli", struct.pack(">2H", 1000, 400)),
            (b"clap", struct.pack(">8I", 150, 1, 80, 1, 0, 1, 0, 1)),
            (b"dvcC", dolby),
            (b"dvvC", dolby),
            (b"what", b"ever"),
        )
    )
    out, at = bytearray(plain.data), 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"hvc1"):
        at = plain.data.index(kind, at) - 4
        size = struct.unpack_from(">I", out, at)[0]
        struct.pack_into(">I", out, at, size + len(more))
        end, at = at + size, at + 8
    out[end:end] = more
    place = MemoryPlace(bytes(out), "games/hdr.mp4")
    entry = (trio.run(source.open_movie, place).tracks[0].boxes or {})["stsd"]
    assert entry.endswith(more)
    for name in ("0.5s-1.5s.mp4", "0.5s-1.5s.key.mp4", "0.5s-1.5s.frag.mp4", "0.7s.mp4"):
        data, _ = trio.run(exact.spliced, place, name)
        assert data.count(entry) == 1, name
    truth = exact.truth_of(plain)
    data, _ = trio.run(exact.spliced, place, "f10-f30.mp4")
    assert [frame.hash for frame in exact.decode(data)] == truth.hashes(10, 30)


@pytest.mark.parametrize("fragmented", [False, True], ids=["progressive", "fragmented"])
def test_objects_over_four_gigabytes(tmp_path: Path, fragmented: bool) -> None:
    """Media beyond 4 GiB: clips and perfect reads decode to the same frames, and nothing else is read."""
    plain = made(tmp_path / "x.mp4", fragmented=fragmented, faststart=False, audio=False)
    truth = exact.truth_of(plain)
    data = far_away(plain.data, 5 << 30)
    place = SparsePlace(data, "games/large.mp4")  # type: ignore[arg-type]
    for rank in (0, 13, 37, 59):
        made_, about = trio.run(exact.spliced, place, f"f{rank}.mp4")
        shown = exact.decode(made_)
        assert shown[int(about["start_frame_index"])].hash == truth.frames[rank].hash
    made_, _ = trio.run(exact.spliced, place, "f25-f50.mp4")
    assert [frame.hash for frame in exact.decode(made_)] == truth.hashes(25, 50)
    assert place.requested < 2 * len(plain.data) + (64 << 10)


@pytest.mark.shared
def test_of_several_tracks_the_first_pictures_and_all_sound_and_text_are_kept() -> None:
    place = exact.shared("torchcodec_nasa_13013.mp4")
    known = trio.run(source.open_movie, place)
    assert [t.handler for t in known.tracks].count("vide") == 2
    data, _ = trio.run(exact.spliced, place, "1s-3s.mp4")
    clip = trio.run(source.open_movie, MemoryPlace(data))
    assert [t.handler for t in clip.tracks] == ["vide", "soun", "soun", "sbtl", "sbtl"]
    with av.open(io.BytesIO(data), "r") as container:
        kinds = [(s.type, s.language) for s in container.streams]
    assert kinds[1:] == [("audio", "eng")] * 2 + [("subtitle", "eng")] * 2
