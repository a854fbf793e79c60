"""What goes with a clip: its subtitles, chapters and timecode, re-timed; sample groups, read and kept."""

from __future__ import annotations

import io
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
import trio

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import mp4_exact as exact  # noqa: E402
import test_mp4_text as text  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from test_mp4_text import here  # noqa: E402, F401
from vfs_mp4 import fragments, groups, source  # noqa: E402
from vfs_mp4.audio import Sounds  # noqa: E402
from vfs_mp4.index import Defaults  # noqa: E402
from vfs_mp4.model import Grouping, Movie  # noqa: E402

from vfs import Spliced  # noqa: E402

FFMPEG = shutil.which("ffmpeg")
CUES = [(0, "one"), (900, ""), (1100, "two"), (1800, "three"), (2500, "")]
CHAPTERS = [(0, "begin"), (1200, "middle"), (2600, "end")]


def clip(place: MemoryPlace, name: str) -> MemoryPlace:
    """A clip as a file of its own."""
    return MemoryPlace(trio.run(exact.spliced, place, name)[0], "games/clip.mp4")


def movie(place: MemoryPlace) -> Movie:
    return trio.run(source.open_movie, place)


def boxes_of(data: bytes, kind: bytes) -> list[bytes]:
    """Every box of a kind, wherever it is."""
    found, at = [], data.find(kind)
    while at >= 0:
        size = int.from_bytes(data[at - 4 : at], "big")
        found.append(data[at - 4 : at - 4 + size])
        at = data.find(kind, at + 4)
    return found


# ---------------------------------------------------------------- text


def test_subtitles_go_with_a_clip_and_keep_in_step() -> None:
    """What is on at the start is on from 0; nothing before or behind shows."""
    place = text.movie({"eng": CUES, "deu": [(0, "immer")]})
    made = clip(place, "0.5s-2s.mp4")
    track = movie(made).tracks[0]
    begin = 500 - round(float(track.samples.dur[0]) / 48)  # at most a packet of sound earlier
    for name, cues in (("1.eng.srt", CUES), ("2.deu.srt", [(0, "immer")])):
        known = [(max(at - 500, 0), words) for at, words in cues if at < 2000]
        told = trio.run(text.text_of, made, name)
        shown = [(at, words) for at, words in known if words]
        assert [block.split("\n")[2] for block in told.strip().split("\n\n")] == [w for _, w in shown]
        for (at, _), block in zip(shown, told.strip().split("\n\n"), strict=True):
            clock = block.split("\n")[1].split(" --> ")[0]
            hours, minutes, rest = clock.split(":")
            ms = (int(hours) * 60 + int(minutes)) * 60_000 + int(rest.replace(",", ""))
            assert at <= ms <= at + (500 - begin) + 1, block


def test_text_that_is_not_there_costs_a_clip_nothing_else() -> None:
    place = text.movie({"eng": CUES})
    data = bytearray(place.data)
    at = data.rindex(b"stco")
    struct.pack_into(">I", data, at + 12, 0x7FFFFFFF)
    made = clip(MemoryPlace(bytes(data)), "0.5s-2s.mp4")
    assert [t.handler for t in movie(made).tracks] == ["soun"]


@pytest.mark.skipif(FFMPEG is None, reason="needs ffmpeg")
def test_ffmpeg_shows_the_subtitles_of_a_clip(tmp_path: Path) -> None:
    made = clip(text.movie({"eng": CUES}), "0.5s-2s.mp4")
    path = tmp_path / "clip.mp4"
    path.write_bytes(made.data)
    command = [str(FFMPEG), "-v", "error", "-i", str(path), "-map", "0:s", "-f", "srt", "-"]
    done = subprocess.run(command, capture_output=True, check=True, text=True)
    assert done.stderr == ""
    plain = re.sub(r"<[^>]*>", "", done.stdout)
    words = [line for line in plain.split("\n") if line.isalpha()]
    assert words == ["one", "two", "three"]


@pytest.mark.skipif(FFMPEG is None, reason="needs ffmpeg")
def test_ttml_keeps_the_times_that_its_documents_tell(tmp_path: Path) -> None:
    srt = "1\n00:00:00,200 --> 00:00:00,900\none\n\n2\n00:00:01,100 --> 00:00:02,500\ntwo\n"
    (tmp_path / "a.srt").write_text(srt)
    sound = text.movie()
    (tmp_path / "a.mp4").write_bytes(sound.data)
    out = tmp_path / "out.mp4"
    inputs = ["-i", str(tmp_path / "a.mp4"), "-i", str(tmp_path / "a.srt")]
    command = [str(FFMPEG), "-v", "error", *inputs, "-c:a", "copy", "-c:s", "ttml", str(out)]
    subprocess.run(command, check=True)
    place = MemoryPlace(out.read_bytes(), "games/out.mp4")
    assert {t.codec for t in movie(place).tracks} == {"mp4a", "stpp"}
    whole = trio.run(text.text_of, place, "1.und.srt").split("\n")
    cut = trio.run(text.text_of, clip(place, "1s-2s.mp4"), "1.und.srt").split("\n")
    assert whole[1::4] == ["00:00:00,200 --> 00:00:00,900", "00:00:01,100 --> 00:00:02,500"]
    (times,), (words,) = cut[1:2], cut[2:3]
    assert words == "two"
    assert "00:00:00,100" <= times[:12] <= "00:00:00,125"


def test_chapters_are_cut_and_re_timed() -> None:
    """Both as QuickTime has them, a track that the sound refers to, and as Nero does."""
    place = text.movie(chapters=CHAPTERS)
    made = clip(place, "1s-2.8s.mp4")
    found = movie(made)
    (chapters,) = [t for t in found.tracks if t.handler == "text"]
    (sound,) = [t for t in found.tracks if t.handler == "soun"]
    assert sound.references == {"chap": (chapters.track_id,)}
    flags = (chapters.boxes or {})["tkhd"][8:12]
    assert flags[3] == (next(t for t in movie(place).tracks if t.handler == "text").boxes or {})["tkhd"][11]
    told = text.chapters_of(made)
    assert [line for line in told.split("\n") if line.startswith("title")] == [
        "title=begin",
        "title=middle",
        "title=end",
    ]
    starts = [int(line[6:]) for line in told.split("\n") if line.startswith("START")]
    for start, known in zip(starts, (0, 200, 1600), strict=True):
        assert known <= start <= known + 25
    with av.open(io.BytesIO(made.data)) as container:
        by_ffmpeg = [c["metadata"]["title"] for c in container.chapters()]
    assert by_ffmpeg == ["begin", "middle", "end"]


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("1s-2.8s.m4a", ["begin", "middle", "end"]),
        ("1.3s-2s.m4a", ["middle"]),
        ("audio.m4a", ["begin", "middle", "end"]),
    ],
)
def test_the_chapters_of_sound_go_with_it(name: str, titles: list[str]) -> None:
    """Podcasts and audio books have little else."""
    place = text.movie(chapters=CHAPTERS)
    node = trio.run(Sounds().resolve, place, name)
    assert isinstance(node, Spliced)
    made = MemoryPlace(exact.content(place, node.layout), "games/sound.m4a")
    with av.open(io.BytesIO(made.data)) as container:
        assert [c["metadata"]["title"] for c in container.chapters()] == titles
        assert len(container.streams.audio) == 1
    found = [line[6:] for line in text.chapters_of(made).split("\n") if line.startswith("title")]
    assert found == titles


# ---------------------------------------------------------------- timecode


def with_timecode(path: Path, code: str, fps: int) -> MemoryPlace:
    with av.open(str(path), "w", format="mov") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.metadata["timecode"] = code
        for number in range(3 * fps):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return MemoryPlace(path.read_bytes(), f"games/{path.name}")


@pytest.mark.parametrize("fps", [25, 30])
def test_the_timecode_of_a_clip_is_that_of_its_first_frame(tmp_path: Path, fps: int) -> None:
    place = with_timecode(tmp_path / "a.mov", "01:02:03:04", fps)
    for name, frame in (("f0-f10.mp4", 0), (f"f{fps + 3}-f{fps + 20}.mp4", fps + 3)):
        with av.open(io.BytesIO(clip(place, name).data)) as container:
            told = container.streams.video[0].metadata["timecode"]
        total = 4 + frame
        assert told == f"01:02:{3 + total // fps:02d}:{total % fps:02d}"


# ---------------------------------------------------------------- sample groups


def grouping(kind: bytes, rows: Sequence[tuple[int, int]], entries: Sequence[bytes]) -> bytes:
    """sgpd (version 1) and sbgp."""
    body = struct.pack(">I4sII", 1 << 24, kind, len(entries[0]), len(entries)) + b"".join(entries)
    described = struct.pack(">I4s", 8 + len(body), b"sgpd") + body
    body = struct.pack(">I4sI", 0, kind, len(rows)) + b"".join(struct.pack(">II", *row) for row in rows)
    return described + struct.pack(">I4s", 8 + len(body), b"sbgp") + body


def with_groups(data: bytes, inserted: bytes) -> bytes:
    """More boxes at the end of the first stbl, of a file whose moov is its last box."""
    out, at = bytearray(data), 0
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        at = data.index(kind, at) - 4
        size = struct.unpack_from(">I", out, at)[0]
        struct.pack_into(">I", out, at, size + len(inserted))
        end, at = at + size, at + 8
    out[end:end] = inserted
    return bytes(out)


@pytest.mark.parametrize("kind", [b"rap ", b"sync"])
def test_random_access_points_of_groups_are_begun_at(tmp_path: Path, kind: bytes) -> None:
    """Of a file that lists its first key frame alone, the rest in groups: clips are as short, and exact."""
    path = exact.encode(
        tmp_path / "a.mp4", frames=90, open_gop=True, faststart=False, audio=False, codec="libx265"
    )
    plain = MemoryPlace(path.read_bytes(), "games/a.mp4")
    known = movie(plain).tracks[0].samples.sync
    keys = np.flatnonzero(known)
    assert len(keys) == 3
    data = bytearray(plain.data)
    at = data.index(b"stss")
    struct.pack_into(">I", data, at + 8, 1)
    rows = [(int(keys[1]), 0), (1, 1), (int(keys[2] - keys[1]) - 1, 0), (1, 1)]
    entry = b"\x82" if kind == b"rap " else bytes([21])
    place = MemoryPlace(with_groups(bytes(data), grouping(kind, rows, [entry])), "games/b.mp4")
    found = movie(place)
    assert np.array_equal(found.tracks[0].samples.sync, known)
    truth = exact.truth_of(plain)
    made, of_plain = clip(place, "f70-f80.mp4"), clip(plain, "f70-f80.mp4")
    assert [f.hash for f in exact.decode(made.data)] == truth.hashes(70, 80)
    assert exact.decode(of_plain.data) == exact.decode(made.data)
    assert movie(made).tracks[0].samples.offset.shape == movie(of_plain).tracks[0].samples.offset.shape
    (kept,) = movie(made).tracks[0].groups
    assert kept.kind.encode() == kind
    assert groups.starts((kept,), len(movie(made).tracks[0].samples)).sum() == 1


def test_rolls_of_sound_are_kept_and_obeyed() -> None:
    """FFmpeg writes that AAC begins a packet earlier; a longer distance is taken as it is."""
    place = exact.sample("h264")
    (sound,) = [t for t in movie(place).tracks if t.handler == "soun"]
    assert [(g.kind, groups.lead((g,))) for g in sound.groups] == [("roll", 1)]
    made = movie(clip(place, "1s-2s.mp4"))
    (kept,) = [t for t in made.tracks if t.handler == "soun"]
    assert [(g.kind, int(g.ends[-1])) for g in kept.groups] == [("roll", len(kept.samples))]
    far = bytearray(place.data)
    at = far.index(b"sgpd")
    at = far.index(struct.pack(">h", -1), at)
    struct.pack_into(">h", far, at, -20)
    (late,) = [t for t in movie(clip(MemoryPlace(bytes(far)), "1s-2s.mp4")).tracks if t.handler == "soun"]
    assert len(late.samples) == len(kept.samples) + 18


def test_lying_groups_are_cut() -> None:
    none = np.empty(0, np.int64)
    whole = grouping(b"roll", [(5, 1), (7, 9)], [b"\xff\xff"])
    size = int.from_bytes(whole[:4], "big")
    for cut in range(8, size):
        one = Grouping("roll", whole[:cut], np.array([5, 12]), np.array([1, 9]))
        assert groups.lead((one,)) in (0, 1)
        assert groups.members(one, np.arange(20)).tolist() == [1] * 5 + [9] * 7 + [0] * 8
    huge = Grouping("roll", whole[: size - 2] + b"\x80\0", none, none)
    assert groups.lead((huge,)) == 1000
    many = Grouping("roll", grouping(b"roll", [(1, 1)], [b"\xff\xfe"] * 200_000)[: 8 + 400_000], none, none)
    assert len(groups.descriptions(many)) == 1024
    sync = Grouping("sync", grouping(b"sync", [(1, 1)], [b"\x15"]), np.array([2]), np.array([99]))
    assert not groups.starts((sync,), 5).any()


def test_groups_of_a_fragment_make_random_access_points() -> None:
    def box(kind: bytes, *parts: bytes) -> bytes:
        body = b"".join(parts)
        return struct.pack(">I4s", 8 + len(body), kind) + body

    tfhd = box(b"tfhd", struct.pack(">III", 0x20020, 1, 0x01010000))
    tfdt = box(b"tfdt", struct.pack(">II", 0, 900))
    trun = box(b"trun", struct.pack(">IIi", 0x301, 4, 100), struct.pack(">8I", *(10, 5) * 4))
    rap = grouping(b"rap ", [(1, 0), (1, 0x10001), (2, 0)], [b"\x80"])
    moof = box(b"moof", box(b"mfhd", bytes(8)), box(b"traf", tfhd, tfdt, trun, rap))
    rows = fragments.parse_moof(moof, 0, {1: Defaults()}, {}).rows[1]
    assert rows.sync.tolist() == [False, True, False, False]
