"""`reelfs index --write-sidecars` on a bucket: stored beside the videos, and over nothing of others."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio
from client_mounts import encode, mounted, reelfs
from vfs_mp4 import sidecar

from tests.r2.faults import Fault
from tests.servers import R2, r2_server
from vfs import open_runtime
from vfs.config import Settings
from vfs.errors import ReadOnly, Refused, Stale
from vfs.runtime import rules_of
from vfs.storage.memory import MemoryStore
from vfs.write.sidecars import StoredSidecars

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "4_plugins"))

from search_media import make, transform

BUCKET = "films"
FRAMES, SEARCH = ".index.sqlite", ".search.sqlite"


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A fragmented video without an index of its own, a scene, and a muted mirrored cut of that."""
    folder = tmp_path_factory.mktemp("videos")
    cut = encode(folder / "f.mp4", frames=90, gop=15, fragmented=True, size=(160, 90)).read_bytes()
    scene = make(folder / "s.mp4", 0, seconds=5)
    looks = ("-ss", "1", "-t", "3", "-an", "-vf", "hflip", "-preset", "ultrafast")
    query = transform(scene, folder / "q.mp4", *looks)
    return {
        "a/clips/f.mp4": cut[: cut.rindex(b"mfra") - 4],
        "a/games/s.mp4": scene.read_bytes(),
        "a/clips/q.mp4": query.read_bytes(),
    }


@dataclass(frozen=True)
class Bucket:
    server: R2
    home: Path

    def index(self, *arguments: str, source: str = "", code: int = 0) -> dict[str, str]:
        """State and reason by key."""
        flags = ("--jobs", "1", *arguments)
        url = f"r2://{BUCKET}{source}"
        done = reelfs(self.home, "index", url, *flags, environ=self.server.environ)
        assert (done.returncode, done.stderr) == (code, ""), done
        rows = [line.split("  ", 1) for line in done.stdout.splitlines()[1:] if "  " in line]
        found = [(rest.strip().partition(": ")[0], f"{state} {rest.strip()}") for state, rest in rows]
        return dict(found)

    def objects(self) -> dict[str, bytes]:
        client = self.server.client()
        try:
            listed = client.list_objects_v2(Bucket=BUCKET).get("Contents", ())
            keys = [item["Key"] for item in listed]
            return {key: client.get_object(Bucket=BUCKET, Key=key)["Body"].read() for key in keys}
        finally:
            client.close()

    def asked(self) -> list[tuple[str, str]]:
        """(operation, key) of each request since the last call."""
        found = [(entry.operation, entry.key) for entry in self.server.log()]
        self.server.forget()
        return found


@pytest.fixture
def bucket(videos: Mapping[str, bytes], tmp_path: Path) -> Iterator[Bucket]:
    with r2_server(tmp_path / "server") as server:
        server.fill(BUCKET, videos)
        home = tmp_path / "home"
        home.mkdir()
        yield Bucket(server, home)


@pytest.mark.fuse
def test_what_one_machine_makes_another_one_reads(
    bucket: Bucket, videos: dict[str, bytes], tmp_path: Path
) -> None:
    """Stored beside the videos; elsewhere frames and search work, and not one video is looked at again."""
    made = bucket.index("--write-sidecars")
    assert {key: told.split()[0] for key, told in made.items()} == dict.fromkeys(videos, "made")
    stored = bucket.objects()
    beside = {"a/clips/f.mp4" + FRAMES, *(key + SEARCH for key in videos)}
    assert set(stored) - set(videos) == beside
    assert {key: stored[key] for key in videos} == videos
    bucket.asked()
    assert bucket.index("--write-sidecars") == {}
    assert not [key for operation, key in bucket.asked() if operation.startswith("Put")]

    # A machine on which nobody indexes: its mount takes them over when something is asked about.
    third = tmp_path / "third"
    third.mkdir()
    with mounted(third, f"r2://{BUCKET}", environ=bucket.server.environ) as mount:
        folder = mount / "search/clip/a%2Fclips%2Fq.mp4@0s-3s/@"
        rows = json.loads((folder / "results.json").read_bytes())["results"]
        assert [row["source"] for row in rows] == ["a/games/s.mp4"]
        assert json.loads((folder / ".status").read_bytes())["indexed"] == 3
    asked = [key for operation, key in bucket.asked() if operation == "GetObject"]
    assert {key for key in asked if key.endswith(SEARCH)} == {key + SEARCH for key in videos}

    # Another machine, which mounts a folder of the bucket and may only read.
    other = Bucket(bucket.server, tmp_path / "other")
    other.home.mkdir()
    found = other.index("--only", "search", source="/a")
    assert {told.split()[0] for told in found.values()} == {"there"}
    fetched = {key for operation, key in bucket.asked() if operation == "GetObject"}
    assert fetched == {key + SEARCH for key in videos}
    with mounted(other.home, f"r2://{BUCKET}/a", environ=bucket.server.environ) as mount:
        folder = mount / "search/clip/clips%2Fq.mp4@0s-3s/@"
        rows = json.loads((folder / "results.json").read_bytes())["results"]
        assert [row["source"] for row in rows] == ["games/s.mp4"]
        (mount / "clips/f@3s.jpg").read_bytes()
        assert ("GetObject", "a/clips/f.mp4" + FRAMES) in bucket.asked()


def test_what_was_made_before_is_stored_when_it_is_asked_for(bucket: Bucket) -> None:
    """First into the cache, then beside: nothing is decoded again."""
    bucket.index("--only", "search")
    bucket.asked()
    told = bucket.index("--only", "search", "--write-sidecars", "--again")
    assert {line.split()[0] for line in told.values()} == {"there"}
    asked = bucket.asked()
    assert sum(operation == "PutObject" for operation, _ in asked) == 3
    assert not [key for operation, key in asked if operation == "GetObject"]


def test_nothing_of_others_is_overwritten(bucket: Bucket, videos: dict[str, bytes]) -> None:
    """A foreign file of the name stays and is told; one of ours of an older video is replaced, but not where
    `write.protect` keeps what is there (`games/`)."""
    foreign = {"a/clips/f.mp4" + FRAMES: b"somebody's", "a/clips/q.mp4" + SEARCH: b"SQLite format 3\0" * 9}
    bucket.server.fill(BUCKET, foreign)
    told = bucket.index("--write-sidecars", code=1)
    failed = {key for key, line in told.items() if line.startswith("failed")}
    assert failed == {"a/clips/f.mp4", "a/clips/q.mp4"}
    before = bucket.objects()
    assert {key: before[key] for key in foreign} == foreign
    assert "a/games/s.mp4" + SEARCH in before

    # The videos are replaced: with them what was made of them, where that may be.
    new = {"a/games/s.mp4": videos["a/clips/q.mp4"], "a/clips/f.mp4": videos["a/games/s.mp4"]}
    bucket.server.fill(BUCKET, new)
    told = bucket.index("--write-sidecars", "--only", "search", code=1)
    after = bucket.objects()
    assert "write.protect" in told["a/games/s.mp4"]
    assert after["a/games/s.mp4" + SEARCH] == before["a/games/s.mp4" + SEARCH]
    assert after["a/clips/f.mp4" + SEARCH] != before["a/clips/f.mp4" + SEARCH]
    assert {key: after[key] for key in foreign} == foreign


def test_a_frame_index_of_an_older_video_is_replaced(bucket: Bucket, videos: dict[str, bytes]) -> None:
    """It says itself what it is of; but not where `write.protect` keeps what is there."""
    made = dict.fromkeys(("a/clips/f.mp4", "a/games/s.mp4"), videos["a/clips/f.mp4"])
    bucket.server.fill(BUCKET, made)
    only = ("--write-sidecars", "--only", "frames")
    bucket.index(*only)
    before = bucket.objects()
    newer = {key: video + b"\0\0\0\x08free" for key, video in made.items()}
    bucket.server.fill(BUCKET, newer)
    told = bucket.index(*only, code=1)
    assert {key: line.split()[0] for key, line in told.items()} == {
        "a/clips/f.mp4": "made",
        "a/games/s.mp4": "failed",
    }
    after = bucket.objects()
    source = sidecar.source_of(after["a/clips/f.mp4" + FRAMES])
    assert source is not None
    assert source[1] == len(newer["a/clips/f.mp4"])
    assert source != sidecar.source_of(before["a/clips/f.mp4" + FRAMES])
    assert after["a/games/s.mp4" + FRAMES] == before["a/games/s.mp4" + FRAMES]
    assert bucket.index(*only, code=1).keys() == {"a/games/s.mp4"}


@pytest.mark.slow
def test_a_store_that_does_not_let_it_is_told(bucket: Bucket) -> None:
    denied = Fault(operation="Put*", key="*" + SEARCH, times=-1, status=403, code="AccessDenied")
    bucket.server.fault(denied)
    told = bucket.index("--write-sidecars", "--only", "search", code=1)
    assert {line.split()[0] for line in told.values()} == {"failed"}
    bucket.server.heal()
    told = bucket.index("--write-sidecars", "--only", "search")
    assert {line.split()[0] for line in told.values()} == {"there"}


def test_what_came_meanwhile_stays(tmp_path: Path) -> None:
    """Stored under conditions, small and in parts; within the rules of writing."""
    store = MemoryStore()
    big = tmp_path / "big"
    big.write_bytes(os.urandom(1 << 20) * 70)
    given = {"source": str(tmp_path), "write": {"allow": ["clips/", "games/"]}}
    settings = Settings.from_dict(given)

    async def session() -> None:
        async with open_runtime(settings, store=store, writes=True) as runtime:
            sidecars = StoredSidecars(runtime.store, rules_of(settings, runtime.store))
            root = (await runtime.tree.root()).place
            assert root is not None
            bodies: tuple[bytes | Path, ...] = (b"small", big)
            for number, body in enumerate(bodies):
                path, protected = f"clips/{number}.sqlite", f"games/{number}.sqlite"
                for where in (path, protected):
                    await sidecars.put(where, body)
                    with pytest.raises(Stale, match="left as it is"):
                        await sidecars.put(where, body)
                place = await root.find(path)
                kept = await root.find(protected)
                assert place is not None
                assert kept is not None
                assert sidecars.allows(path, replaces=place)
                await sidecars.put(path, b"new", replaces=place)
                with pytest.raises(Stale):
                    await sidecars.put(path, body, replaces=place)
                assert await store.read((await store.head(path)).object, 0, 3) == b"new"
                assert not sidecars.allows(protected, replaces=kept)
                with pytest.raises(Refused):
                    await sidecars.put(protected, body, replaces=kept)
                assert not sidecars.allows("a/x.sqlite")
                with pytest.raises(ReadOnly):
                    await sidecars.put("a/x.sqlite", body)
            assert await store.uploads() == {}

    trio.run(session)
