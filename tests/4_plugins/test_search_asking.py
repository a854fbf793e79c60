"""What is asked about is decoded in the background: listing an answer decodes nothing, and waits a moment."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from vfs_search import looks
from vfs_search.indexer import Pictures
from vfs_search.sampling import Question, Still

sys.path.insert(0, str(Path(__file__).parent))

from search_media import make, transform

from vfs import Damaged, Runtime, Settings, Unavailable, in_worker, open_runtime, workers

CLIP = "search/clip/q.mp4@0s-3s"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A game, and a muted mirrored cut of it that nobody has indexed."""
    top = tmp_path_factory.mktemp("asking") / "library"
    game = make(top / "game.mp4", 0, seconds=5)
    looks = ("-ss", "1", "-t", "3", "-an", "-vf", "hflip", "-preset", "ultrafast")
    transform(game, top / "q.mp4", *looks)
    (top / "bad.mp4").write_text("no video")
    return top


Ask = Callable[[Runtime], Awaitable[None]]


@pytest.fixture
def on(library: Path, tmp_path: Path) -> Callable[..., None]:
    """A session of a mount of the library, whose game is indexed."""

    def run(ask: Ask, **search: Any) -> None:
        given = {
            "source": str(library),
            "cache_dir": str(tmp_path / "cache"),
            "workers": {"processes": 1},
            "plugin": {"search": search},
        }
        settings = Settings.from_dict(given)

        async def session() -> None:
            async with open_runtime(settings) as runtime:
                root = (await runtime.tree.root()).place
                assert root is not None
                game = await root.find("game.mp4")
                assert game is not None
                await Pictures(settings).index(game, None)
                await ask(runtime)

        trio.run(session)

    return run


async def listed(runtime: Runtime, path: str) -> tuple[list[str], dict[str, Any], dict[str, Any]]:
    """(names, results.json, .status) of an answer."""
    entries = await runtime.tree.entries(await runtime.tree.resolve(f"{path}/@"))
    results = json.loads(await runtime.tree.settle(entries["results.json"]))
    status = json.loads(await runtime.tree.settle(entries[".status"]))
    return sorted(entries), results, status


def jobs() -> int:
    return sum(workers.jobs.values())


async def until(good: Callable[[], Awaitable[bool]]) -> None:
    with trio.fail_after(30):
        while not await good():
            await trio.sleep(0.01)


def test_to_name_an_answer_is_to_ask_and_listing_it_decodes_nothing(on: Callable[..., None]) -> None:
    """One job when the folder is looked up; the listing finds it done. The next mount has it from disk."""

    async def first(runtime: Runtime) -> None:
        before = jobs()
        folder = await runtime.tree.resolve(f"{CLIP}/@")

        async def looked() -> bool:
            return jobs() == before + 1

        await until(looked)
        names = await runtime.tree.entries(folder)
        assert any(name.endswith(".mp4") for name in names)
        _, results, status = await listed(runtime, CLIP)
        assert [row["source"] for row in results["results"]] == ["game.mp4"]
        assert "preparing" not in status | results
        await listed(runtime, f"{CLIP}/limit:3")
        assert jobs() == before + 1

    async def again(runtime: Runtime) -> None:
        before = jobs()
        for path in (CLIP, "search/frame/q.mp4@1s"):
            _, results, _ = await listed(runtime, path)
            assert results["results"][0]["source"] == "game.mp4"
        assert jobs() == before + 1, "the picture alone"

    on(first)
    on(again)


def test_what_takes_long_is_told_and_comes_later(on: Callable[..., None]) -> None:
    """While the one worker is busy: a listing at once, that says so; whole as soon as it is free."""

    async def ask(runtime: Runtime) -> None:
        before = jobs()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(in_worker, time.sleep, 100)
            for path in (CLIP, "search/frame/q.mp4@1s"):
                with trio.fail_after(5):
                    names, results, status = await listed(runtime, path)
                assert set(names) == {".status", "links", "results.json", "results.m3u8"}
                assert (results["preparing"], results["results"], status["preparing"]) == (True, [], True)
                assert "look again" in status["note"]
            assert json.loads(
                await runtime.tree.settle(
                    await runtime.tree.resolve("search/clip/q.mp4@0s-3s/tier:coded/@/.status")
                )
            )["preparing"]
            assert jobs() == before
            nursery.cancel_scope.cancel()

        async def whole() -> bool:
            return "preparing" not in (await listed(runtime, CLIP))[1]

        await until(whole)
        assert (await listed(runtime, CLIP))[1]["results"][0]["source"] == "game.mp4"

    on(ask, wait=0.05)


def test_what_cannot_be_decoded_is_tried_once(on: Callable[..., None], tmp_path: Path) -> None:
    """Each listing is told, and only the first had it decoded; another file of the name is another matter."""

    async def ask(runtime: Runtime) -> None:
        folder = await runtime.tree.resolve("search/drop")
        assert folder.node.inbox is not None  # type: ignore[union-attr]
        receive = folder.node.inbox.receive  # type: ignore[union-attr]
        assert receive is not None
        (tmp_path / "x").write_text("no picture")
        await receive("x.png", tmp_path / "x")
        before = jobs()
        for _ in range(3):
            with pytest.raises(Damaged):
                await listed(runtime, "search/drop/x.png.results")
        assert jobs() - before <= 1
        (tmp_path / "x").write_text("no picture either")
        await receive("x.png", tmp_path / "x")
        with pytest.raises(Damaged):
            await listed(runtime, "search/drop/x.png.results")
        assert jobs() - before == 2

    on(ask)


def test_a_store_that_is_away_is_asked_again(on: Callable[..., None]) -> None:
    """What fails because the bytes did not come is no failure of the file."""
    still, tries = Still(np.zeros((1, 512), np.float32), ["as is"], {}), []

    async def make() -> Still:
        tries.append(1)
        if len(tries) == 1:
            raise Unavailable("away")
        return still

    async def ask(runtime: Runtime) -> None:
        root = (await runtime.tree.root()).place
        assert root is not None
        asked, mine = looks.Asked("a question", Still, make), looks.Looks(5)
        with pytest.raises(Unavailable):
            await mine.at(root, asked)
        assert await mine.at(root, asked) is still
        assert await mine.at(root, asked) is still
        assert len(tries) == 2

    on(ask)


def test_what_was_kept_is_what_was_made() -> None:
    chance = np.random.default_rng(1)
    extra = {"rep0st108": chance.random((3, 108)).astype(np.float32)}
    vectors = chance.random((3, 2, 512)).astype(np.float32)
    asked = Question(
        1.5, np.arange(3.0), vectors, ["as is", "mirrored"], np.arange(9, dtype=np.uint64), np.arange(9.0),
        np.zeros((4, 2), np.uint32), extra,
    )  # fmt: skip
    still = Still(vectors[0], ["as is", "mirrored"], {})
    of_clip, of_still = looks.packed(asked), looks.packed(still)
    again, still_again = looks.unpacked(Question, of_clip), looks.unpacked(Still, of_still)
    assert again is not None
    assert still_again is not None
    assert (looks.packed(again), looks.packed(still_again)) == (of_clip, of_still)
    assert again.names == still_again.names == ["as is", "mirrored"]
    assert looks.unpacked(Question, of_clip[:100]) is None
    assert looks.unpacked(Question, looks.packed(still)) is None
    assert looks.unpacked(Still, b"") is None
