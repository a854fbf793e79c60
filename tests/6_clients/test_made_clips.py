"""Reels, the clips of a database, files that are no MP4, on a real mount: by `ls`, ffmpeg, PyAV and mpv."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest
from client_mounts import Mount, encode, mounted
from client_players import ffmpeg_frames, mpv_ranks, pyav_frames, truth
from mp4_sparse import far_away

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
needs_mpv = pytest.mark.skipif(shutil.which("mpv") is None, reason="needs mpv")
GAMES: dict[str, dict[str, Any]] = {
    "h264": {},
    "other": {"options": {"crf": "35", "refs": "4", "profile": "main"}},
    "hevc": {"codec": "libx265", "open_gop": True, "bframes": 3},
}
REELS = {
    "h264": [("h264", 1.2, 2.3), ("other", 0.5, 1.7), ("h264", 0, 1)],
    "hevc": [("hevc", 1.2, 2.3), ("hevc", 0.5, 1.7), ("hevc", 1, 2)],
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """A user's folder with games, a database, reels, and a game in other containers."""
    source = tmp_path_factory.mktemp("made")
    user = source / "a"
    (user / "games").mkdir(parents=True)
    (user / "reels").mkdir()
    for name, options in GAMES.items():
        encode(user / "games" / f"{name}.mp4", frames=90, size=(160, 90), **options)
    for name, clips in REELS.items():
        lines = [f"../games/{game}.mp4@{start}-{stop}" for game, start, stop in clips]
        (user / "reels" / f"{name}.reel").write_text("# best of\n" + "\n".join(lines) + "\n")
    (user / "reels" / "bad.reel").write_text("../games/h264@1-2\n../games/nothing@1-2\n")
    for suffix, format in (("mkv", "matroska"), ("ts", "mpegts")):
        target = av.open(str(user / f"game.{suffix}"), "w", format=format)
        with av.open(str(user / "games" / "h264.mp4")) as given, target as made:
            streams = {s.index: made.add_stream_from_template(s) for s in given.streams}
            for packet in given.demux():
                if packet.dts is not None:
                    packet.stream = streams[packet.stream.index]
                    made.mux(packet)
    database(user / "database.sqlite")
    with mounted(tmp_path_factory.mktemp("mount"), source, expected=[r"nothing|no video"]) as mount:
        yield mount


def database(path: Path) -> None:
    with sqlite3.connect(path) as connection:
        connection.executescript(
            "CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, video_path TEXT);"
            "CREATE TABLE raw_clips"
            "  (id INTEGER PRIMARY KEY, game_id, start_time, end_time, rating, tags, notes)"
        )
        connection.execute("INSERT INTO games VALUES (1, 'vs Harbor', 'games/h264.mp4')")
        rows = [(n, 1, n / 1000, n / 1000 + 1, n % 6, '["Goals"]', f"Note {n}") for n in range(2000)]
        connection.executemany("INSERT INTO raw_clips VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
    connection.close()


def expected(library: Mount, clips: list[tuple[str, float, float]]) -> list[tuple[Path, int]]:
    """(source, rank) of each frame of a reel; 30 frames a second, so that times are exact."""
    return [
        (library.source / "a" / "games" / f"{game}.mp4", rank)
        for game, start, stop in clips
        for rank in range(round(start * 30), round(stop * 30))
    ]


@needs_ffmpeg
@pytest.mark.parametrize("name", REELS)
def test_a_reel_plays_exactly_its_clips(library: Mount, name: str) -> None:
    path = library / "a" / "reels" / f"{name}@.mp4"
    wanted = expected(library, REELS[name])
    assert ffmpeg_frames(path) == [truth(source).by_ffmpeg[rank] for source, rank in wanted]
    assert pyav_frames(path) == [truth(source).frames[rank].hash for source, rank in wanted]
    inside = library / "a" / "reels" / f"{name}.reel@" / "reel.mp4"
    assert path.stat().st_size == inside.stat().st_size == len(inside.read_bytes())
    assert os.getxattr(path, "user.reelfs.clips") == b"3"


@needs_mpv
@pytest.mark.parametrize("name", REELS)
def test_mpv_plays_a_reel(library: Mount, name: str, tmp_path: Path) -> None:
    """From key frames on it shows all and nothing else; what an edit list hides it shows, too, as ever.

    The sources of a reel look alike frame by frame, so ranks of one tell those of the other.
    """
    source = library.source / "a" / "games" / f"{name}.mp4"
    reels = library / "a" / "reels"
    whole_groups = [(game, start // 1, stop) for game, start, stop in REELS[name]]
    # B-frames lean on frames that come after the end of a clip: mpv shows up to two of those.
    shown = mpv_ranks(source, reels / f"{name}@.key.mp4", tmp_path / "key")
    assert len(shown) <= 2 * 3 + len(expected(library, whole_groups))
    for way, clips in ((f"{name}@.key.mp4", whole_groups), (f"{name}@.mp4", REELS[name])):
        left = iter(mpv_ranks(source, reels / way, tmp_path / way))
        assert all(rank in left for _, rank in expected(library, clips))


def test_a_bad_reel_is_listed_and_says_why(library: Mount) -> None:
    folder = library / "a" / "reels" / "bad.reel@"
    assert sorted(os.listdir(folder)) == ["reel.json", "reel.key.mp4", "reel.mp4"]
    with pytest.raises(OSError, match="Input/output error"):
        (folder / "reel.mp4").read_bytes()
    told = json.loads((folder / "reel.json").read_bytes())
    assert [("error" in clip) for clip in told["clips"]] == [False, True]


def test_rows_are_listed_and_are_clips_of_the_game(library: Mount) -> None:
    folder = library / "a" / "raw_clips@"
    names = os.listdir(folder)
    assert len(names) == 2000
    assert "raw_clips@" not in os.listdir(library / "a")
    path = folder / "4 Note 1000.mp4"
    source = library.source / "a" / "games" / "h264.mp4"
    assert pyav_frames(path) == [frame.hash for frame in truth(source).frames[30:60]]
    assert path.stat().st_size == len(path.read_bytes())
    told = {name: os.getxattr(path, f"user.reelfs.{name}").decode() for name in ("rating", "game", "notes")}
    assert told == {"rating": "4", "game": "vs Harbor", "notes": "Note 1000"}


def test_ls_of_rows_tells_their_sizes(library: Mount) -> None:
    """A size is worked out where it is asked for."""
    out = subprocess.run(
        ["find", str(library / "a" / "raw_clips@"), "-name", "? Note 10?.mp4", "-printf", "%s %p\n"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert len(out) == 10
    for line in out:
        size, path = line.split(" ", 1)
        assert int(size) == len(Path(path).read_bytes()) > 0


@needs_ffmpeg
@pytest.mark.parametrize("suffix", ["mkv", "ts"])
def test_frames_and_clips_of_other_containers(library: Mount, suffix: str) -> None:
    source = library.source / "a" / "games" / "h264.mp4"
    beside = library.source / "a" / f"game.{suffix}"
    # Frame 45 of the file, wherever its clock begins.
    picture = library / "a" / f"game.{suffix}@f45.png"
    assert picture.read_bytes() == (library / "a" / "games" / "h264@f45.png").read_bytes()
    assert json.loads((library / "a" / f"game.{suffix}@" / "info.json").read_bytes())["streams"]
    clip = library / "a" / f"game.{suffix}@f10-f50.mp4"
    if suffix == "mkv":
        assert ffmpeg_frames(clip) == list(truth(source).by_ffmpeg[10:50])
    else:
        with pytest.raises(OSError, match="not supported"):
            clip.stat()
    assert (library / "a" / f"game.{suffix}").read_bytes() == beside.read_bytes()


@needs_ffmpeg
@pytest.mark.parametrize(
    "fragmented", [pytest.param(False, id="progressive"), pytest.param(True, id="fragmented")]
)
@pytest.mark.slow
def test_a_video_of_five_gigabytes(tmp_path: Path, fragmented: bool) -> None:
    """A file with a hole, through the kernel: clips, a picture and whole files in other forms are exact."""
    plain = encode(tmp_path / "x.mp4", frames=60, gop=15, fragmented=fragmented, faststart=False, audio=False)
    wanted = truth(plain)
    large = far_away(plain.read_bytes(), 5 << 30)
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "x.mp4", "wb") as file:
        for at, piece in large.pieces:
            file.seek(at)
            file.write(piece)
        file.truncate(len(large))
    (tmp_path / "mount").mkdir()
    with mounted(tmp_path / "mount", source) as mount:
        assert ffmpeg_frames(mount / "x@f25-f50.mp4") == list(wanted.by_ffmpeg[25:50])
        for form in ("faststart.mp4", "fragmented.mp4", "hls/video/stream.mp4"):
            assert ffmpeg_frames(mount / "x.mp4@" / form) == list(wanted.by_ffmpeg), form
        assert (mount / "x.mp4@" / "faststart.mp4").stat().st_size == len(large)
        rank = int(os.getxattr(mount / "x@f37.mp4", "user.reelfs.start_frame_index"))
        assert pyav_frames(mount / "x@f37.mp4")[rank] == wanted.frames[37].hash
        assert (mount / "x@f37.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
