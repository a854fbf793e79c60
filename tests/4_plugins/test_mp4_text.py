"""Subtitles and chapters of a video: what is listed, when it is shown, and why some is not."""

from __future__ import annotations

import io
import struct
import sys
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest
import trio

sys.path[:0] = [str(Path(__file__).parent)]

import mp4_exact  # noqa: E402
import mp4_sound  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import subtitles  # noqa: E402
from vfs_mp4.clips import nero_chapters  # noqa: E402
from vfs_mp4.subtitles import Texts, metadata  # noqa: E402

from vfs import Bytes, Damaged, Directory, Unsupported  # noqa: E402

#: What the muxer asks of a stream of text.
_STYLE = b"[V4+ Styles]\nFormat: Name, Fontname, Fontsize\nStyle: Default,Arial,16\n"
MILLISECOND = Fraction(1, 1000)


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read text in this process; workers are tried in `test_mp4_sound_reads`."""

    async def run(function: Callable[..., Any], *arguments: Any) -> Any:
        await trio.lowlevel.checkpoint()
        return function(*arguments)

    monkeypatch.setattr(subtitles, "in_worker", run)


def movie(
    tracks: Mapping[str, Sequence[tuple[int, str]]] = {},
    chapters: Sequence[tuple[int, str]] = (),
) -> MemoryPlace:
    """Three seconds of sound; texts and chapters by the millisecond, each to the next; "" shows nothing."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        sound: Any = container.add_stream("aac", rate=48_000, layout="mono")
        texts: list[Any] = []
        for language in tracks:
            stream: Any = container.add_stream("mov_text")
            stream.codec_context.subtitle_header = _STYLE
            stream.time_base, stream.metadata["language"] = MILLISECOND, language
            texts.append(stream)
        ends = [*(start for start, _ in chapters[1:]), 3000]
        container.set_chapters(
            [
                {"id": n, "start": start, "end": end, "time_base": MILLISECOND, "metadata": {"title": title}}
                for n, ((start, title), end) in enumerate(zip(chapters, ends, strict=False))
            ]
        )
        frame = av.AudioFrame.from_ndarray(mp4_sound.tones(48_000, Fraction(3), 1), "fltp", "mono")
        frame.sample_rate, frame.pts = 48_000, 0
        cutter = av.AudioResampler("fltp", "mono", 48_000, 1024)
        for piece in [*cutter.resample(frame), *cutter.resample(None)]:
            container.mux(sound.encode(piece))
        container.mux(sound.encode(None))
        for stream, cues in zip(texts, tracks.values(), strict=True):
            stops = [*(start for start, _ in cues[1:]), 3000]
            for (start, text), stop in zip(cues, stops, strict=True):
                packet = av.Packet(struct.pack(">H", len(text.encode())) + text.encode())
                packet.stream, packet.time_base, packet.duration = stream, MILLISECOND, stop - start
                packet.pts = packet.dts = start
                container.mux(packet)
    return MemoryPlace(out.getvalue(), "games/x.mp4")


TALK = ((0, ""), (500, "Anstoß"), (1200, ""), (1500, "zwei\nZeilen"))


async def text_of(place: MemoryPlace, name: str) -> str:
    folder = await Texts().resolve(place, "subtitles")
    assert isinstance(folder, Directory)
    node = await folder.lookup(name)
    assert isinstance(node, Bytes)
    return (await node.produce()).decode()


async def listed(place: MemoryPlace) -> list[str]:
    folder = (await Texts().entries(place))["subtitles"]
    assert isinstance(folder, Directory)
    return list(await folder.entries())


def chapters_of(place: MemoryPlace) -> str:
    node = trio.run(Texts().resolve, place, "chapters.txt")
    assert isinstance(node, Bytes)
    return trio.run(node.produce).decode()


def test_a_file_for_each_track_and_form() -> None:
    place = movie({"deu": TALK, "fra": TALK[1:2]})
    assert trio.run(listed, place) == ["1.deu.srt", "1.deu.vtt", "2.fra.srt", "2.fra.vtt"]
    assert trio.run(text_of, place, "1.deu.srt") == (
        "1\n00:00:00,500 --> 00:00:01,200\nAnstoß\n\n2\n00:00:01,500 --> 00:00:03,000\nzwei\nZeilen\n"
    )
    assert trio.run(text_of, place, "2.fra.vtt").startswith("WEBVTT\n\n00:00:00.500 --> ")
    folder = trio.run(Texts().resolve, place, "subtitles")
    assert isinstance(folder, Directory)
    assert trio.run(folder.lookup, "3.deu.srt") is None


def test_the_same_cues_as_ffmpeg_reads() -> None:
    place = movie({"eng": TALK})
    with av.open(io.BytesIO(place.data), "r") as container:
        packets = [p for p in container.demux(container.streams.subtitles[0]) if p.size > 2]
        wanted = [
            (round(p.pts * p.time_base * 1000), bytes(p)[2:].decode()) for p in packets if p.pts is not None
        ]
    lines = trio.run(text_of, place, "1.eng.vtt").split("\n\n")[1:]
    assert len(lines) == len(wanted) == 2
    for line, (start, text) in zip(lines, wanted, strict=True):
        assert line.startswith(f"00:00:0{start // 1000}.{start % 1000:03d} --> ")
        assert line.split("\n", 1)[1].strip() == text


def test_none_where_there_is_none() -> None:
    place = movie()
    assert trio.run(Texts().entries, place) == {}
    for name in ("subtitles", "chapters.txt", "audio.wav"):
        assert trio.run(Texts().resolve, place, name) is None
    assert trio.run(Texts().entries, MemoryPlace(b"", "games/empty.mp4")) == {}


@pytest.mark.parametrize(
    ("codec", "why"),
    [(b"c608", "drawn by the player"), (b"mp4s", "pictures"), (b"qqqq", "'qqqq' are not read")],
)
def test_what_is_no_text_is_listed_and_says_why(codec: bytes, why: str) -> None:
    place = MemoryPlace(movie({"eng": TALK}).data.replace(b"tx3g", codec), "games/x.mp4")
    assert trio.run(listed, place) == ["1.eng.srt", "1.eng.vtt"]
    with pytest.raises(Unsupported, match=why):
        trio.run(text_of, place, "1.eng.srt")


def test_samples_outside_of_the_file() -> None:
    data = bytearray(movie({"eng": TALK}).data)
    struct.pack_into(">I", data, data.index(b"stco", data.index(b"tx3g")) + 12, 1 << 30)
    with pytest.raises(Damaged, match="beyond the end"):
        trio.run(text_of, MemoryPlace(bytes(data), "games/x.mp4"), "1.eng.srt")


# ---------------------------------------------------------------- chapters

GAME = ((0, "Anstoß; 1=1"), (1500, "Halb\\zeit"), (2250, "#Ende"))


@pytest.mark.parametrize("without", [b"", b"chpl", b"chap"])
def test_chapters_of_both_kinds(without: bytes) -> None:
    """QuickTime's track of chapters, Nero's box, or both: the same file, which FFmpeg understands."""
    place = movie({"eng": TALK}, GAME)
    if without:
        place = MemoryPlace(place.data.replace(without, b"free"), "games/x.mp4")
    found = chapters_of(place)
    with av.open(io.BytesIO(found.encode()), "r", format="ffmetadata") as container:
        told = [(c["start"], c["end"], c["time_base"], c["metadata"]["title"]) for c in container.chapters()]
    ends = (1500, 2250, 3000)
    assert told == [(s, e, MILLISECOND, title) for (s, title), e in zip(GAME, ends, strict=True)]
    # Chapters are no subtitles.
    if without != b"chap":
        assert trio.run(listed, place) == ["1.eng.srt", "1.eng.vtt"]


def test_chapters_are_on_the_line_of_path_times() -> None:
    """A movie whose pictures and sound begin a fifth of a second late: path times begin there."""
    data = bytearray(movie({}, GAME).data)
    assert chapters_of(MemoryPlace(bytes(data), "games/x.mp4")).count("START=1500\n") == 1
    # The edit list of the sound: an empty edit in place of its first, of as many ticks as it has.
    at = data.index(b"elst")
    length, media = struct.unpack_from(">Ii", data, at + 12)
    assert (length, media) == (3000, 1024)
    rows = struct.pack(">IIIiIIiI", 0, 2, 200, -1, 0x10000, 2800, 1024, 0x10000)
    grown = data[: at - 4] + struct.pack(">I", 40) + b"elst" + rows + data[at + 24 :]
    place = MemoryPlace(bytes(_resized(grown, 12)), "games/x.mp4")
    assert chapters_of(place).count("START=1300\n") == 1


def _resized(data: bytearray, more: int) -> bytearray:
    """The boxes around the first edit list, so many bytes longer."""
    for kind in (b"moov", b"trak", b"edts"):
        at = data.index(kind) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + more)
    return data


def test_lying_nero_boxes_are_cut() -> None:
    row = struct.pack(">QB", 20_000_000, 3) + b"abc"
    whole = b"\0\0\0\x20chpl\1\0\0\0\0\0\0\0\2" + row + row
    assert nero_chapters(whole) == [(20_000_000, b"abc")] * 2
    assert nero_chapters(whole[:-4]) == [(20_000_000, b"abc")]
    assert nero_chapters(b"\0\0\0\x20chpl\0\0\0\0\1" + row) == [(20_000_000, b"abc")]
    assert nero_chapters(b"\0\0\0\x08chpl") == nero_chapters(b"") == []
    assert metadata([(5000, "late")], 3000) == (
        ";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=5000\nEND=5000\ntitle=late\n"
    )


@pytest.mark.shared
def test_real_files() -> None:
    place = mp4_exact.shared("torchcodec_nasa_13013.mp4")
    assert trio.run(listed, place) == [f"{n}.eng.{f}" for n in (1, 2) for f in ("srt", "vtt")]
    assert "00:00:00,210 --> 00:00:04,260\nNAR: This is" in trio.run(text_of, place, "1.eng.srt")
    found = chapters_of(mp4_exact.shared("media_sample_with_nero_chapters_only.mp4"))
    assert [line for line in found.split("\n") if line.startswith("START")] == [
        "START=0",
        "START=201",
        "START=800",
    ]
