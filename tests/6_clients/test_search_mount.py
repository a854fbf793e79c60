"""`search/` on a real mount: listed by ls, played by ffprobe, followed by readlink."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
from pathlib import Path

import client_mounts
import pytest
from client_mounts import mounted

SCHEMA = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, video_path TEXT, opponent_name TEXT, game_date TEXT);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, game_id INTEGER, start_time REAL, end_time REAL,
    rating INTEGER, tags TEXT, notes TEXT);
INSERT INTO games VALUES (17, 'vs Lions', 'games/g.mp4', 'Lions', '2025-09-14');
INSERT INTO raw_clips VALUES (1, 17, 0.5, 1.5, 5, '["goal"]', 'far post');
INSERT INTO raw_clips VALUES (2, 17, 1.5, 2.5, 2, '["miss"]', 'wide');
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user with one game and two rows."""
    top = tmp_path_factory.mktemp("search") / "library"
    (top / "a/games").mkdir(parents=True)
    client_mounts.encode(top / "a/games/g.mp4", frames=90, gop=15, size=(320, 180))
    connection = sqlite3.connect(top / "a/database.sqlite")
    connection.executescript(SCHEMA)
    connection.close()
    return top


def raised(path: Path) -> int | None:
    with pytest.raises(OSError) as error:
        os.listdir(path)
    return error.value.errno


@pytest.mark.fuse
def test_words_give_clips_that_play(tmp_path: Path, library: Path) -> None:
    """A result is the clip of that range, byte for byte; wrong queries are errors of their own path."""
    with mounted(tmp_path, library) as mount:
        folder = mount / "search/text/tag:goal/@"
        name = "001_s1.00_2025-09-14_Lions_00h00m00.5s-00h00m01.5s_g17.mp4"
        assert sorted(os.listdir(folder)) == [
            ".status",
            name,
            "contact.jpg",
            "links",
            "results.json",
            "results.m3u8",
        ]
        assert (folder / name).read_bytes() == (mount / "a/games/g@0.5s-1.5s.mp4").read_bytes()
        probe = ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0"]
        done = subprocess.run([*probe, str(folder / name)], capture_output=True, text=True, check=True)
        assert (abs(float(done.stdout) - 1.0) < 0.05, done.stderr) == (True, "")
        assert os.getxattr(folder / name, "user.reelfs.search.tier") == b"text"
        assert os.getxattr(folder / name, "user.reelfs.search.tags") == b"goal"
        assert (folder / "links" / name).resolve() == (mount / "a/games/g.mp4").resolve()
        assert (folder / "contact.jpg").read_bytes()[:3] == b"\xff\xd8\xff"
        rows = json.loads((folder / "results.json").read_text())["results"]
        assert [(row["game"], row["start"], row["end"]) for row in rows] == [(17, 0.5, 1.5)]
        assert os.listdir(mount / "search/text") == []
        assert raised(mount / "search/text/colour:red/@") == errno.EINVAL
        assert raised(mount / "search/text/'; DROP TABLE words; --/limit:0/@") == errno.EINVAL
        for hostile in (
            *("frame/..%2F..%2Fetc%2Fpasswd@1s", "clip/%2Fetc%2Fpasswd@1s-2s", "frame/a%00.mp4@1s"),
            *("text/%00", "text/rating:1 OR 1=1"),
        ):
            assert raised(mount / f"search/{hostile}/@") in (errno.EINVAL, errno.ENOENT), hostile
        for injected in (
            "goal OR 1=1",
            "a' UNION SELECT * FROM words --",
            "goal* AND {notes}",
            "tag:{x} NEAR(",
        ):
            assert json.loads((mount / f"search/text/{injected}/@/results.json").read_text())["results"] == []
        assert raised(mount / f"search/text/{'x' * 300}/@") == errno.ENAMETOOLONG
        assert raised(mount / f"search/text/{'x' * 10_000_000}/@") == errno.ENAMETOOLONG
        assert name in os.listdir(folder)
        assert raised(mount / "search/nothing") == errno.ENOENT
