"""`search/frame/` and `search/clip/` over an indexed library: every tier, real encoders, changes of it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest
import trio
from vfs_search.catalog import Catalog
from vfs_search.indexer import Pictures

sys.path.insert(0, str(Path(__file__).parent))

from search_media import make, transform

from vfs import Bytes, NotFound, ReelfsError, Runtime, Settings, open_runtime, workers
from vfs.runtime import rules_of
from vfs.write.sidecars import StoredSidecars

SCENES = 4
MIRROR = "hflip,eq=brightness=0.1"
TALL = "crop=ih*9/16:ih:(iw-ih*9/16)/2:0,scale=180:320"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes, and what was made of the first one."""
    top = tmp_path_factory.mktemp("pictures") / "library"
    for seed in range(SCENES):
        make(top / f"games/{seed}.mp4", seed)
    game = top / "games/0.mp4"
    transform(game, top / "cuts/copy.mkv", "-ss", "4", "-t", "4", "-c", "copy")
    transform(game, top / "cuts/coded.mp4", "-ss", "4", "-t", "4", "-vf", MIRROR, "-preset", "ultrafast")
    transform(game, top / "cuts/mute.mp4", "-ss", "4", "-t", "4", "-vf", TALL, "-an", "-preset", "ultrafast")
    (top / "games/bad.mp4").write_text("no video at all")
    return top


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, library: Path) -> Path:
    """A home in which the library is indexed."""
    home = tmp_path_factory.mktemp("home")
    lines = index(home, library)
    states = sorted(line.split()[0] for line in lines[1:-1])
    assert states == ["made"] * (SCENES + 3) + ["unplayable"]
    return home


def index(home: Path, library: Path, *arguments: str) -> list[str]:
    options = ["--only", "search", "--jobs", "1", str(library), *arguments]
    command = [sys.executable, "-m", "vfs.cli", "index", *options]
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.fixture
def on(
    home: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Callable[[Runtime], Awaitable[None]]], None]:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def run(ask: Callable[[Runtime], Awaitable[None]]) -> None:
        async def session() -> None:
            settings = Settings.load({"source": str(library)}, environ={"HOME": str(home)})
            async with open_runtime(settings) as runtime:
                await ask(runtime)

        trio.run(session)

    return run


async def results(runtime: Runtime, path: str) -> list[dict[str, Any]]:
    found = await runtime.tree.settle(await runtime.tree.resolve(f"search/{path}/@/results.json"))
    rows: list[dict[str, Any]] = json.loads(found)["results"]
    return rows


On = Callable[[Callable[[Runtime], Awaitable[None]]], None]


def test_a_picture_is_found_where_else_it_is(on: On) -> None:
    """In the game that the mirrored cut was made of, and in the other cuts, in time; not in itself."""

    async def ask(runtime: Runtime) -> None:
        rows = await results(runtime, "frame/cuts%2Fcoded.mp4@2s")
        best = {row["source"]: row for row in reversed(rows)}
        assert rows[0]["source"] in ("games/0.mp4", "cuts/copy.mkv")
        assert best["games/0.mp4"]["mirrored"] == "yes"
        middle = (best["games/0.mp4"]["start"] + best["games/0.mp4"]["end"]) / 2
        assert abs(middle - 6) <= 0.6
        assert "cuts/coded.mp4" not in best

    on(ask)


def test_a_copied_cut_is_found_by_its_coded_pictures(on: On) -> None:
    """Matroska here, MP4 there; to the frame, and nothing was decoded."""

    async def ask(runtime: Runtime) -> None:
        rows = await results(runtime, "clip/cuts%2Fcopy.mkv@0s-4s")
        assert (rows[0]["source"], rows[0]["tier"]) == ("games/0.mp4", "coded")
        assert {row["tier"] for row in rows} == {"coded"}
        assert abs(float(rows[0]["offset"]) - 4) < 0.1
        back = await results(runtime, "clip/games%2F0.mp4@5s-7s/tier:coded")
        assert [row["source"] for row in back] == ["cuts/copy.mkv"]
        frame = await results(runtime, "frame/cuts%2Fcopy.mkv@2s")
        assert (frame[0]["source"], frame[0]["tier"]) == ("games/0.mp4", "coded")

    on(ask)


def test_an_encoded_cut_is_found_by_its_sound(on: On) -> None:
    async def ask(runtime: Runtime) -> None:
        before = sum(workers.jobs.values())
        rows = await results(runtime, "clip/cuts%2Fcoded.mp4@0s-4s/in:games")
        assert sum(workers.jobs.values()) == before, "its sound is in the index, nothing is decoded"
        assert {row["tier"] for row in rows} == {"sound"}
        (game,) = [row for row in rows if row["source"] == "games/0.mp4"]
        assert abs(game["start"] - 4) < 0.15

    on(ask)


def test_a_muted_portrait_export_is_found_by_its_pictures(on: On) -> None:
    async def ask(runtime: Runtime) -> None:
        rows = await results(runtime, "clip/cuts%2Fmute.mp4@0s-4s")
        assert {row["tier"] for row in rows} == {"visual"}
        (game,) = [row for row in rows if row["source"] == "games/0.mp4"]
        assert game["window"].startswith(("strip", "centre"))
        assert abs(game["start"] - 4) < 0.5
        assert abs(game["end"] - 8) < 0.6
        assert not any(row["source"] in ("games/1.mp4", "games/2.mp4", "games/3.mp4") for row in rows)

    on(ask)


def test_options_choose_among_the_results(on: On) -> None:
    async def ask(runtime: Runtime) -> None:
        whole = await results(runtime, "clip/cuts%2Fmute.mp4@0s-4s/tier:all/min:0")
        assert len(whole) >= 3
        one = await results(runtime, "clip/cuts%2Fmute.mp4@0s-4s/tier:all/min:0/limit:1")
        assert [row["path"] for row in one] == [whole[0]["path"]]
        some = await results(runtime, "clip/cuts%2Fmute.mp4@0s-4s/tier:all/min:0/in:cuts")
        assert some
        assert all(row["source"].startswith("cuts/") for row in some)

    on(ask)


def test_clips_and_the_sheet_are_made_of_the_tree(on: On) -> None:
    """A result is the clip of the tree; the contact sheet is drawn; .status tells how far the index is."""

    async def ask(runtime: Runtime) -> None:
        folder = await runtime.tree.resolve("search/clip/cuts%2Fmute.mp4@0s-4s/@")
        entries = await runtime.tree.entries(folder)
        (first, *_) = sorted(name for name in entries if name.endswith(".mp4"))
        row = (await results(runtime, "clip/cuts%2Fmute.mp4@0s-4s"))[0]
        clip = await runtime.tree.resolve(row["path"])
        assert entries[first].version == clip.version
        assert entries[first].attributes["search.tier"] == "visual"
        sheet = await runtime.tree.settle(entries["contact.jpg"])
        assert sheet[:3] == b"\xff\xd8\xff"
        status = json.loads(await runtime.tree.settle(entries[".status"]))
        assert (status["indexed"], status["videos"], status["tiers"]) == (
            SCENES + 3,
            SCENES + 4,
            ["coded", "sound", "visual"],
        )
        assert isinstance(entries[".status"].node, Bytes)

    on(ask)


@pytest.mark.parametrize(
    "path", ["clip/nothing.mp4@0s-4s", "frame/games%2F0.mp4@999s", "clip/games%2Fbad.mp4@0s-4s"]
)
def test_what_cannot_be_asked_about_is_an_error_of_its_own(on: On, path: str) -> None:
    async def ask(runtime: Runtime) -> None:
        with pytest.raises(ReelfsError):
            await results(runtime, path)
        assert await results(runtime, "clip/cuts%2Fcopy.mkv@0s-4s")

    on(ask)


def test_without_an_index_the_status_says_so(
    library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))

    async def session() -> None:
        settings = Settings.load({"source": str(library)}, environ={"HOME": str(tmp_path)})
        async with open_runtime(settings) as runtime:
            assert await results(runtime, "clip/cuts%2Fmute.mp4@0s-4s") == []
            found = await runtime.tree.resolve("search/clip/cuts%2Fmute.mp4@0s-4s/@/.status")
            assert "reelfs index" in json.loads(await runtime.tree.settle(found))["note"]

    trio.run(session)


@contextmanager
def watching(home: Path, library: Path) -> Iterator[Callable[[str], str]]:
    """`reelfs index --watch`; the function waits for a line that a pattern fits."""
    command = [sys.executable, "-m", "vfs.cli", "index", "--only", "search", "--jobs", "1", "--watch=100ms"]
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    process = subprocess.Popen([*command, str(library)], env=environ, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        yield lambda pattern: next(line for line in lines if re.search(pattern, line))
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()


def test_the_index_follows_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `--watch`: new, replaced and deleted videos; what is replaced is not shown before."""
    source, home = tmp_path / "videos", tmp_path / "home"
    home.mkdir()
    source.mkdir()
    monkeypatch.setenv("HOME", str(home))
    game, other = (make(tmp_path / f"{seed}.mp4", seed, seconds=4) for seed in (0, 1))
    query = transform(game, tmp_path / "query.mp4", "-t", "3", "-an", "-vf", "hflip", "-preset", "ultrafast")

    def put(name: str, video: Path) -> None:
        shutil.copyfile(video, tmp_path / "part")
        (tmp_path / "part").rename(source / name)

    async def sources() -> list[str]:
        given = {"source": str(source), "dir_ttl": 0, "attr_ttl": 0}
        async with open_runtime(Settings.load(given, environ={"HOME": str(home)})) as runtime:
            return sorted({row["source"] for row in await results(runtime, "clip/q.mp4@0s-2s/tier:visual")})

    def kept() -> int:
        return len(list((home / ".cache/reelfs/search").glob("*/objects/*/*.search.sqlite")))

    for name in ("a.mp4", "b.mp4"):
        put(name, game)
    with watching(home, source) as until:
        until("^2 videos in")
        put("q.mp4", query)
        until("^made +q.mp4")
        until("^3 videos in")
        assert trio.run(sources) == ["a.mp4", "b.mp4"]
        assert kept() == 3
        (source / "a.mp4").unlink()
        until("^search: 1 videos are gone")
        put("b.mp4", other)
        until("^made +b.mp4")
        until("^search: 1 old files removed")
        assert trio.run(sources) == []
        assert kept() == 2
        put("c.mp4", game)
        until("^made +c.mp4")
        until("^3 videos in")
        assert trio.run(sources) == ["c.mp4"]
    put("c.mp4", other)
    assert trio.run(sources) == [], "it is not what was indexed"


async def indexed(source: Path, home: Path, beside: bool = False, **search: int) -> tuple[str, str]:
    """What `reelfs index` does in one process: (the state of each video, what it tells at its end)."""
    chosen = Settings.from_dict(
        {"source": str(source), "plugin": {"search": {"folder": str(home), **search}}}
    )
    async with open_runtime(chosen, writes=beside) as runtime:
        pictures = Pictures(chosen)
        sidecars = StoredSidecars(runtime.store, rules_of(chosen, runtime.store)) if beside else None
        root = (await runtime.tree.root()).place
        assert root is not None
        videos = {n: place for n, place in (await root.children()).items() if pictures.wants(n)}
        states = [(await pictures.index(place, sidecars))[0] for place in videos.values()]
        return " ".join(states), await pictures.finish(videos.__contains__, len(videos))


def test_the_index_keeps_within_its_budget(tmp_path: Path) -> None:
    """The longest indexed go first."""
    source, home = tmp_path / "videos", tmp_path / "home"
    source.mkdir()
    video = make(tmp_path / "0.mp4", 0, seconds=2).read_bytes()
    for number in range(3):
        (source / f"{number}.mp4").write_bytes(video)
    assert trio.run(indexed, source, home) == ("made made made", "")
    (folder,) = home.iterdir()
    budget = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) - 1000
    catalog = Catalog(folder)
    assert catalog.clean(3, budget) == (0, 1)
    assert len(catalog.known()) == 2
    catalog.close()
    assert len(list(folder.glob("objects/*/*.search.sqlite"))) == 2
    told = trio.run(partial(indexed, source, home, index_budget=budget))[1]
    assert told == f"1 videos dropped: index_budget is {budget}"


def test_sidecars_beside_the_videos_serve_another_machine(tmp_path: Path) -> None:
    source = tmp_path / "videos"
    source.mkdir()
    (source / "a.mp4").write_bytes(make(tmp_path / "a.mp4", 0, seconds=2).read_bytes())
    assert trio.run(indexed, source, tmp_path / "one", True)[0] == "made"
    assert sorted(os.listdir(source)) == ["a.mp4", "a.mp4.search.sqlite"]
    assert trio.run(indexed, source, tmp_path / "two")[0] == "there"
    # One that says it is of this video, and lies, is not believed.
    database = apsw.Connection(str(source / "a.mp4.search.sqlite"))
    list(database.execute("UPDATE pages SET windows = zeroblob(1)"))
    database.close()
    assert trio.run(indexed, source, tmp_path / "three")[0] == "made"


@pytest.mark.parametrize(
    ("adopt", "expected", "note"), [("1GiB", 2, ""), ("1KiB", 0, "adopt"), (0, 0, "index")]
)
def test_a_mount_takes_over_what_lies_beside(tmp_path: Path, adopt: object, expected: int, note: str) -> None:
    """Where nobody indexed: within its limit, and nothing is decoded for it."""
    source = tmp_path / "videos"
    game = make(source / "games/a.mp4", 0, seconds=3)
    transform(game, source / "cut.mp4", "-t", "2", "-c", "copy")
    for folder in ("", "games"):
        trio.run(indexed, source / folder, tmp_path / "one", True)
    given = {"source": str(source), "plugin": {"search": {"folder": str(tmp_path / "two"), "adopt": adopt}}}

    async def session() -> None:
        async with open_runtime(Settings.from_dict(given)) as runtime:
            before = sum(workers.jobs.values())
            rows = await results(runtime, "clip/cut.mp4@0s-1s/tier:coded")
            status = await runtime.tree.resolve("search/clip/cut.mp4@0s-1s/tier:coded/@/.status")
            told = json.loads(await runtime.tree.settle(status))
            assert [row["source"] for row in rows] == ["games/a.mp4"][:expected]
            assert told["indexed"] == expected
            assert note in told.get("note", "")
            assert sum(workers.jobs.values()) == before

    trio.run(session)


def test_a_query_by_no_path_is_not_found(on: On) -> None:
    async def ask(runtime: Runtime) -> None:
        with pytest.raises(NotFound):
            await runtime.tree.resolve("search/clip/cuts%2Fcopy.mkv@0s-4s/nonsense")

    on(ask)
