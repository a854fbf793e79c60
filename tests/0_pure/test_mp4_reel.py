"""The text of reels, and sample descriptions that may or may not follow one another in a track."""

from __future__ import annotations

import struct

import pytest
from vfs_mp4 import descriptions, reel
from vfs_mp4.model import Samples, Track
from vfs_mp4.reel import Line, Wrong

from vfs import Damaged, TooBig, Unsupported


def one(text: str, folder: str = "a/reels") -> Line | Wrong:
    (found,) = reel.parse(text.encode(), folder)
    return found


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("x.mp4@5s-9s", "a/reels/x.mp4"),
        ("../games/x@5-9", "a/games/x"),
        ("/b/x.mp4@1m-", "b/x.mp4"),
        ("./x//y.mp4@f3+f4", "a/reels/x/y.mp4"),
        ("a@b.mp4@k1-k2", "a/reels/a@b.mp4"),
        ("%23 one%40%25.mp4@0-1", "a/reels/# one@%.mp4"),
        ("  ä ö.mp4@0-1  ", "a/reels/ä ö.mp4"),
        ("../../x.mp4@0-1", "x.mp4"),
    ],
)
def test_paths_are_of_the_folder_or_of_the_root(text: str, path: str) -> None:
    line = one(text)
    assert isinstance(line, Line)
    assert (line.path, line.selection.is_range) == (path, True)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("x.mp4", "no range"),
        ("@5s-9s", "no range"),
        ("x.mp4@5s", "an instant"),
        ("x.mp4@9s-5s", "no range"),
        ("x.mp4@5s-9s.key", "no range"),
        ("x.mp4@NaN-3", "no range"),
        ("../../../x.mp4@5s-9s", "out of what is mounted"),
        ("/@1-2", "out of what is mounted"),
    ],
)
def test_a_line_that_is_no_clip_says_what_would_be_right(text: str, reason: str) -> None:
    line = one(text)
    assert isinstance(line, Wrong)
    assert reason in line.reason


def test_comments_and_blank_lines_count_as_lines_but_say_nothing() -> None:
    text = "\ufeff# a reel\r\n\r\n  # indented\r\nx.mp4@0-1\r\n\nbad\n"
    found = reel.parse(text.encode(), "")
    assert [(line.number, line.text, type(line)) for line in found] == [
        (4, "x.mp4@0-1", Line),
        (6, "bad", Wrong),
    ]


def test_bytes_that_are_no_text_are_names() -> None:
    (line,) = reel.parse(b"\xff\xfe.mp4@0-1", "")
    assert isinstance(line, Line)
    assert line.path.encode("utf-8", "surrogateescape") == b"\xff\xfe.mp4"


def test_limits() -> None:
    with pytest.raises(Damaged, match="no line names a clip"):
        reel.parse(b"# nothing\n\n", "")
    with pytest.raises(TooBig, match="1000"):
        reel.parse(b"x@0-1\n" * 1001, "")
    with pytest.raises(TooBig, match="bytes"):
        reel.parse(b"#" * (reel.MAX_BYTES + 1), "")
    assert len(reel.parse(b"x@0-1\n" * 1000, "")) == 1000


# ---------------------------------------------------------------- descriptions

AVC = bytes.fromhex("014d400bffe1000467aabbcc01000368eeff")
HVC = bytes(22) + bytes((3, 33, 0, 1, 0, 3, 1, 2, 3, 39, 0, 1, 0, 1, 7, 34, 0, 1, 0, 2, 8, 9))


def box(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I4s", 8 + len(payload), kind) + payload


def video(
    setup: bytes = AVC, codec: bytes = b"avc1", size: tuple[int, int] = (320, 180), more: bytes = b""
) -> Track:
    fields = bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HH", *size) + bytes(50)
    kind = {b"a": b"avcC", b"h": b"hvcC", b"m": b"esds"}[codec[:1]]
    entry = box(codec, fields + box(kind, setup) + more)
    stsd = box(b"stsd", struct.pack(">II", 0, 1) + entry)
    none = Samples(*[None] * 7)  # type: ignore[arg-type]
    return Track(1, "vide", 90_000, codec.decode(), none, boxes={"stsd": stsd})


def merged(*tracks: Track) -> tuple[bytes, bool]:
    return descriptions.merged(tracks, [f"line {n}" for n in range(1, len(tracks) + 1)])


def test_equal_descriptions_are_one() -> None:
    stsd, in_band = merged(video(), video(more=box(b"btrt", bytes(12))), video())
    assert not in_band
    assert stsd == (video().boxes or {})["stsd"]


def test_square_pixels_need_not_be_said() -> None:
    assert not merged(video(), video(more=box(b"pasp", struct.pack(">II", 1, 1))))[1]


def test_other_parameter_sets_are_carried_in_the_samples() -> None:
    other = AVC[:-1] + b"\xfe"
    stsd, in_band = merged(video(), video(other))
    assert in_band
    assert stsd[20:24] == b"avc3"
    (entry,) = descriptions.entries(video(other))
    assert descriptions.parameter_sets(entry) == bytes.fromhex("0000000467aabbcc0000000368eefe")


def test_parameter_sets_of_hevc() -> None:
    (entry,) = descriptions.entries(video(HVC, b"hvc1"))
    assert descriptions.parameter_sets(entry) == bytes((3, 1, 2, 3, 2, 8, 9))  # lengths of one byte
    with pytest.raises(Damaged, match="cut short"):
        descriptions.parameter_sets(descriptions.entries(video(HVC[:26], b"hvc1"))[0])


@pytest.mark.parametrize(
    ("track", "why"),
    [
        (video(size=(640, 360)), "640 x 360 follows 320 x 180"),
        (video(HVC, b"hvc1"), "hvc1 follows avc1"),
        (video(more=box(b"pasp", struct.pack(">II", 4, 3))), "described in another way .pasp"),
        (video(AVC[:1] + b"\x6e" + AVC[2:]), "profile"),
        (video(AVC[:4] + b"\xfd" + AVC[5:]), "profile"),
    ],
)
def test_what_cannot_follow_is_told_with_its_line(track: Track, why: str) -> None:
    with pytest.raises(Unsupported, match=rf"line 2: .*{why}.*unlike line 1"):
        merged(video(), track)


def test_a_codec_whose_set_up_is_unknown_must_not_change() -> None:
    assert not merged(video(b"x", b"mp4v"), video(b"x", b"mp4v"))[1]
    known, other = (video(b"\0\0\0\0\4\x0d" + bytes(13) + b"\5\1" + c, b"mp4v") for c in (b"x", b"y"))
    with pytest.raises(Unsupported, match="coded in another way"):
        merged(known, other)
