"""Searching a bucket: a real server, real mounts, what is asked of the store, and questions kept in it."""

from __future__ import annotations

import errno
import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from client_mounts import Mount, mounted, reelfs
from PIL import Image

from tests.servers import R2, r2_server

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "4_plugins"))

from search_media import make, transform

pytestmark = pytest.mark.fuse

SCHEMA = """
CREATE TABLE games (id INTEGER PRIMARY KEY, name TEXT, video_path TEXT, opponent_name TEXT, game_date TEXT);
CREATE TABLE raw_clips (id INTEGER PRIMARY KEY, game_id INTEGER, start_time REAL, end_time REAL,
    rating INTEGER, tags TEXT, notes TEXT);
INSERT INTO games VALUES (17, 'vs Lions', 'games/g.mp4', 'Lions', '2025-09-14');
INSERT INTO raw_clips VALUES (1, 17, 1.5, 3.5, 5, '["goal"]', 'far post');
INSERT INTO raw_clips VALUES (2, 17, 3.5, 5.5, 2, '["miss"]', 'wide');
"""
BUCKET = "films"
TALL = "crop=ih*9/16:ih:(iw-ih*9/16)/2:0,scale=180:320"
CLIP = "search/clip/a%2Fraw_clips%2Ftall.mp4@0s-4s"


@dataclass(frozen=True)
class Library:
    """A bucket that is indexed by who lives in `home`, and mounted by him."""

    server: R2
    home: Path
    mount: Mount

    def asked(self) -> dict[str, int]:
        """Requests since the last call, by operation."""
        found: dict[str, int] = {}
        for entry in self.server.log():
            found[entry.operation] = found.get(entry.operation, 0) + 1
        self.server.forget()
        return found


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Library]:
    """Two games, a cut of the first without encoding, a muted portrait of it, and a database."""
    top, home = tmp_path_factory.mktemp("bucket"), tmp_path_factory.mktemp("home")
    game, other = (make(top / f"{seed}.mp4", seed, seconds=8) for seed in (0, 1))
    cut = transform(game, top / "cut.mp4", "-ss", "2", "-t", "4", "-c", "copy")
    tall = transform(
        game, top / "tall.mp4", "-ss", "2", "-t", "4", "-vf", TALL, "-an", "-preset", "ultrafast"
    )
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    files = {"games/g.mp4": game, "games/h.mp4": other, "raw_clips/cut.mp4": cut, "raw_clips/tall.mp4": tall}
    stored = {f"a/{key}": path.read_bytes() for key, path in files.items()}
    stored["a/database.sqlite"] = connection.serialize()
    connection.close()
    with r2_server(top / "server") as server:
        server.fill(BUCKET, stored)
        done = reelfs(
            home, "index", f"r2://{BUCKET}", "--only", "search", "--jobs", "1", environ=server.environ
        )
        assert (done.returncode, done.stderr) == (0, ""), done
        assert done.stdout.splitlines()[-1].endswith("4 indexed")
        flags = ("--read-write", "-o", "attr_ttl=60s,negative_ttl=60s")
        with mounted(home, f"r2://{BUCKET}", *flags, environ=server.environ) as mount:
            yield Library(server, home, mount)


def rows(folder: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((folder / "results.json").read_bytes())["results"]
    return found


def played(path: Path) -> float:
    """Seconds of picture that ffmpeg decodes, with no complaint."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:v:0", "-f", "null", "-progress", "-", "-"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return int(done.stdout.rpartition("out_time_us=")[2].split()[0]) / 1e6


def test_words_cost_the_database_and_the_heads_of_what_is_found(library: Library) -> None:
    """Once: then an answer is free, and its clips are the clips of the game."""
    library.asked()
    folder = library.mount / "search/text/tag:goal/@"
    (name,) = [name for name in os.listdir(folder) if name.endswith(".mp4")]
    assert name == "001_s1.00_2025-09-14_Lions_00h00m01.5s-00h00m03.5s_g17.mp4"
    asked = library.asked()
    assert asked.get("GetObject", 0) <= 3, asked  # the database, the head of the game
    assert asked.get("HeadObject", 0) + asked.get("ListObjectsV2", 0) <= 6, asked
    assert abs(played(folder / name) - 2) < 0.1
    assert (folder / name).read_bytes() == (library.mount / "a/games/g@1.5s-3.5s.mp4").read_bytes()
    library.asked()
    os.listdir(folder)
    (library.mount / "search/text/tag:miss/@/results.json").read_bytes()
    assert library.asked() == {}


@pytest.mark.parametrize(
    ("path", "tier", "video"),
    [(f"{CLIP}/in:a%2Fgames", "visual", "g.mp4"),
     ("search/clip/a%2Fraw_clips%2Fcut.mp4@0s-4s", "coded", "g.mp4"),
     ("search/frame/a%2Fraw_clips%2Ftall.mp4@2s/in:a%2Fgames", "visual", "g.mp4")],
)  # fmt: skip
def test_pictures_cost_the_part_that_is_asked_about(
    library: Library, path: str, tier: str, video: str
) -> None:
    """What is searched in lies on this machine; results are cut out of the bucket and play."""
    library.asked()
    folder = library.mount / path / "@"
    (first, *_) = sorted(name for name in os.listdir(folder) if name.endswith(".mp4"))
    asked = library.asked()
    assert sum(asked.values()) <= 16, asked
    assert set(asked) <= {"GetObject", "HeadObject", "ListObjectsV2"}, asked
    found = rows(folder)[0]
    assert (found["source"], found["tier"]) == (f"a/games/{video}", tier)
    assert abs(played(folder / first) - 4) < 0.4
    library.asked()
    os.listdir(folder)
    assert library.asked() == {}


def test_what_lies_beside_the_results(library: Library) -> None:
    """Attributes, lists, links, the contact sheet and the status: each says what it should."""
    folder = library.mount / CLIP / "tier:visual/min:0/in:a%2Fgames/@"
    names = sorted(name for name in os.listdir(folder) if name.endswith(".mp4"))
    found = rows(folder)
    assert [row["name"] for row in found] == names
    told = {
        name.removeprefix("user.reelfs.search."): os.getxattr(folder / names[0], name).decode()
        for name in os.listxattr(folder / names[0])
        if name.startswith("user.reelfs.search.")
    }
    facts = "rank score tier source start end offset votes coverage mirrored window descriptor index_version"
    assert set(facts.split()) <= set(told)
    assert (told["tier"], told["descriptor"], told["rank"], told["mirrored"]) == (
        "visual",
        "grad512",
        "1",
        "no",
    )
    assert (told["source"], told["votes"]) == (found[0]["source"], found[0]["votes"])
    assert abs(float(told["offset"]) - 2) < 0.5
    assert float(told["coverage"]) > 0.5
    entries = [line for line in (folder / "results.m3u8").read_text().splitlines() if line[0] != "#"]
    assert [unquote(line) for line in entries] == names
    quiet = ("--no-config", "--untimed", "--vo=null", "--ao=null", "--msg-level=all=warn,cplayer=info")
    done = subprocess.run(
        ["mpv", *quiet, str(folder / "results.m3u8")], capture_output=True, text=True, timeout=60, check=False
    )
    opened = [line.rpartition("/")[2] for line in done.stdout.splitlines() if line.startswith("Playing: ")]
    assert (done.returncode, [name for name in opened if name != "results.m3u8"]) == (0, names), done
    assert {os.readlink(folder / "links" / name) for name in names} >= {"../" * 8 + "a/games/g.mp4"}
    assert all((folder / "links" / name).resolve().is_file() for name in names)
    sheet = Image.open(io.BytesIO((folder / "contact.jpg").read_bytes()))
    assert sheet.format == "JPEG"
    assert int(np.ptp(np.asarray(sheet.convert("L")))) > 100, "pictures, not grey"
    status = json.loads((folder / ".status").read_bytes())
    assert (status["indexed"], status["tiers"], status["results"]) == (4, ["visual"], len(names))
    assert status["index_version"] == told["index_version"]


def test_questions_are_kept_in_the_bucket(library: Library, tmp_path: Path) -> None:
    """mkdir here, there it is on another machine, which may only read; and gone when it is removed."""
    client = library.server.client()

    def stored() -> dict[str, bytes]:
        listed = client.list_objects_v2(Bucket=BUCKET, Prefix=".reelfs-search/").get("Contents", ())
        keys = [item["Key"] for item in listed]
        return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}

    here = library.mount / "search/saved"
    fresh = ("-o", "dir_ttl=0s,attr_ttl=0s,negative_ttl=0s")
    with mounted(tmp_path, f"r2://{BUCKET}", *fresh, environ=library.server.environ) as other:
        there = other / "search/saved"
        assert os.listdir(there) == []
        os.mkdir(here / "goal")
        assert stored() == {".reelfs-search/goal.query": b"text/goal\n"}
        assert os.listdir(there) == ["goal"]
        assert ".reelfs-search" not in os.listdir(other.path)
        assert sorted(os.listdir(there / "goal")) == [".query", ".refresh", "@"]
        assert [row["source"] for row in rows(there / "goal/@")] == ["a/games/g.mp4"]
        (here / "goal/.query").write_text("text/tag:miss/limit:1\n")
        assert (there / "goal/.query").read_text() == "text/tag:miss/limit:1\n"
        assert rows(there / "goal/@")[0]["start"] == 3.5
        with pytest.raises(OSError) as raised:
            os.rmdir(there / "goal")
        assert raised.value.errno == errno.EROFS
        os.rmdir(here / "goal")
        assert (stored(), os.listdir(there), os.listdir(here)) == ({}, [], [])
    client.close()


def test_outside_of_what_may_be_written_questions_stay_here(library: Library, tmp_path: Path) -> None:
    flags = ("--read-write", "-o", "write.allow=a/raw_clips/")
    environ = library.server.environ
    with mounted(tmp_path, f"r2://{BUCKET}", *flags, environ=environ) as mount:
        library.asked()
        os.mkdir(mount / "search/saved/goal")
        assert os.listdir(mount / "search/saved") == ["goal"]
        assert (mount / "search/saved/goal/.query").read_text() == "text/goal\n"
        assert "PutObject" not in library.asked()
        os.rmdir(mount / "search/saved/goal")
        assert os.listdir(mount / "search/saved") == []
