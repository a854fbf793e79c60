"""Descriptors and vector indexes of other plugins, rep0st's own, settings: through the real hooks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio
from vfs_search import cascade, engine, features, sampling, sidecar
from vfs_search.catalog import Entry, Snapshot, norms
from vfs_search.indexer import Pictures
from vfs_search.options import Options

sys.path.insert(0, str(Path(__file__).parent))

from search_media import make, transform

from vfs import (
    ConfigError,
    Descriptor,
    Malformed,
    Runtime,
    Settings,
    VectorIndex,
    Vectors,
    hookimpl,
    open_runtime,
)


class Counting:
    """An index of another plugin: a scan that counts how often it was asked."""

    name = "counting"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def nearest(self, vectors: Vectors, queries: Any, k: int, least: float) -> tuple[Any, Any]:
        self.asked.append(vectors.generation)
        near = engine.exact(vectors.rows, norms(vectors.rows), vectors.alive, queries, k, least)
        return near.rows, near.scores


class Plugin:
    def __init__(self) -> None:
        self.index = Counting()

    @hookimpl
    def vfs_descriptors(self) -> Iterable[Descriptor]:
        return [Descriptor("colours", "vfs_search.features", "rep0st108")]

    @hookimpl
    def vfs_vector_index(self) -> VectorIndex:
        return self.index


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("hooks") / "library"
    for seed in range(2):
        make(top / f"{seed}.mp4", seed, seconds=4)
    transform(
        top / "1.mp4", top / "cut.mp4", "-ss", "1", "-t", "2", "-an", "-preset", "ultrafast", "-crf", "30"
    )
    return top


def settings(library: Path, home: Path, **search: Any) -> Settings:
    return Settings.from_dict(
        {"source": str(library), "plugin": {"search": {"folder": str(home / "index"), **search}}}
    )


async def rows(runtime: Runtime, path: str) -> list[dict[str, Any]]:
    found = await runtime.tree.settle(await runtime.tree.resolve(f"search/{path}/@/results.json"))
    told: list[dict[str, Any]] = json.loads(found)["results"]
    return told


def test_descriptors_and_indexes_of_other_plugins_are_used(library: Path, tmp_path: Path) -> None:
    """Indexed with all three; each answers; the index of the plugin is asked."""
    plugin = Plugin()
    chosen = settings(library, tmp_path, descriptors=["grad512", "rep0st108", "colours"])

    async def session() -> None:
        async with open_runtime(chosen, extra_plugins=[("mine", plugin)]) as runtime:
            indexer = Pictures(chosen, runtime.plugins.descriptors(chosen))
            root = (await runtime.tree.root()).place
            assert root is not None
            for name in ("0.mp4", "1.mp4", "cut.mp4"):
                place = await root.find(name)
                assert place is not None
                state, reason = await indexer.index(place, None)
                assert state == "made", reason
                assert await indexer.index(place, None) == ("there", "")
            for descriptor in ("rep0st", "colours", "grad512"):
                found = await rows(runtime, f"clip/cut.mp4@0s-2s/tier:visual/descriptor:{descriptor}")
                assert found[0]["source"] == "1.mp4", descriptor
                assert found[0]["descriptor"].startswith(descriptor)
            assert plugin.index.asked
            assert (await rows(runtime, "frame/cut.mp4@1s/descriptor:rep0st"))[0]["source"] == "1.mp4"
            with pytest.raises(Malformed, match="descriptors"):
                await rows(runtime, "clip/cut.mp4@0s-2s/descriptor:nothing")

    trio.run(session)
    files = list((tmp_path / "index").rglob(f"*{sidecar.SUFFIX}"))
    assert len(files) == 3
    contents = sidecar.read(files[0])
    assert {vectors.shape[1] for _, vectors in contents.extra.values()} == {108}
    assert len(contents.numbers) == len(contents.times) == len(contents.keys)
    assert contents.keys[0]
    assert (np.diff(contents.numbers) > 0).all()


def test_a_descriptor_nobody_has_is_a_mistake_in_the_settings(library: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="magic is none of grad512, rep0st108"):
        Options.load(settings(library, tmp_path, descriptors=["magic"])).plan()


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [("rate", "fast", "rate"), ("rate", -1, "out of range"), ("colour", 1, "unknown key"),
     ("listed", 3, "yes or no"), ("frame_batch_size", 0, "out of range"),
     ("index_budget", "much", "index_budget")],
)  # fmt: skip
def test_mistakes_in_the_settings_name_the_key(
    library: Path, tmp_path: Path, key: str, value: Any, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        Options.load(settings(library, tmp_path, **{key: value}))


def test_limits_of_a_video_hold_and_are_told(library: Path, tmp_path: Path) -> None:
    """The names of rep0st's video plan: max_keyframes, max_duration; key frames alone with rate 0."""

    async def indexed(**search: Any) -> str:
        chosen = settings(library, tmp_path / str(len(search)) / str(search), **search)
        async with open_runtime(chosen) as runtime:
            root = (await runtime.tree.root()).place
            assert root is not None
            place = await root.find("0.mp4")
            assert place is not None
            return (await Pictures(chosen).index(place, None))[1]

    assert trio.run(lambda: indexed(max_keyframes=3)).startswith("3 pictures")
    assert trio.run(lambda: indexed(rate=0)).startswith("4 pictures of 4 s")
    assert trio.run(lambda: indexed(max_duration=2, rate=1)).startswith("2 pictures of 2 s")
    # A key frame a second: of those, one in two seconds, or in ten.
    assert trio.run(lambda: indexed(rate=0, keyframe_interval=2)).startswith("2 pictures of 4 s")
    assert trio.run(lambda: indexed(rate=0, keyframe_interval=10)).startswith("1 pictures of 4 s")


@pytest.mark.parametrize("batch", [1, 3])
def test_so_many_pictures_are_described_together(
    library: Path, monkeypatch: pytest.MonkeyPatch, batch: int
) -> None:
    """frame_batch_size: never more at a time; what comes of it is the same, and stands in for it."""
    together: list[int] = []
    whole = features.describe_whole

    def counted(lumas: Any) -> Any:
        together.append(len(lumas))
        return whole(lumas)

    monkeypatch.setattr(features, "describe_whole", counted)
    parts = {}
    for size in (8, batch):
        plan = Options(frame_batch_size=size).plan()
        with (library / "0.mp4").open("rb") as file:
            parts[size] = sampling.describe(file, "mp4", 0.0, 4.0, plan)
        assert max(together) == min(size, 8), "as many as there are at most"
        together.clear()
    in_order = [part.vectors[np.lexsort((part.windows, part.rows))].astype(int) for part in parts.values()]
    assert np.abs(in_order[0] - in_order[1]).max() <= 1
    one, other = (sidecar.Identity("0.mp4", "1", 9, Options(frame_batch_size=n).plan()) for n in (8, batch))
    assert one.text == other.text


@pytest.mark.parametrize(
    ("least", "matches", "expected"),
    [(0.9, 3, [0]), (0.9, 2, [0, 1]), (0.9, 4, []), (0.9, 9, []), (0.4, 4, [0, 1]), (1.0, 2, [0, 1]),
     (0.0, 9, [0, 1, 2])],
)  # fmt: skip
def test_when_pictures_match_and_how_many_must(least: float, matches: int, expected: list[int]) -> None:
    """similarity_threshold and min_matches of `descriptor:rep0st`: of four pictures three are in the first
    video, two in the second, none in the third; what is not there scores .5, and .01 in the third."""
    near, far = np.full(108, 0.5), np.full(108, -0.64)
    asked = np.repeat(np.eye(4), 27, axis=1)
    videos = ((asked[0], asked[1], asked[2], near), (asked[0], asked[1], near, near), (far, far, far, far))
    column, times = "rep0st108.float32.108", "rep0st108.times.float32.1"
    vectors = np.stack([row for video in videos for row in video])
    entries = tuple(
        Entry(n, f"{n}.mp4", "1", 1, 9.0, {column: (4 * n, 4), times: (4 * n, 4)}) for n in range(3)
    )
    columns: dict[str, Any] = {column: vectors.astype(np.float32), times: np.arange(12.0)[:, None]}
    none = np.empty(0)
    question = sampling.Question(
        4.0, np.arange(4.0), np.empty((4, 1, 512), np.float32), ["as is"], none.astype(np.uint64), none,
        np.empty((0, 2), np.uint32), {"rep0st108": asked.astype(np.float32)},
    )  # fmt: skip
    snapshot = Snapshot("1", entries, columns, 3)
    found = cascade.by_descriptor(snapshot, "rep0st108", question, least=least, matches=matches)
    assert [one.video for one in found] == expected


def test_the_limits_of_a_question_are_those_of_the_settings(library: Path, tmp_path: Path) -> None:
    chosen = Options.load(settings(library, tmp_path, min_matches=2, similarity_threshold="0.9"))
    assert (chosen.min_matches, chosen.similarity_threshold) == (2, 0.9)
    usual = Options()
    assert (usual.keyframe_interval, usual.max_keyframes, usual.max_duration) == (1.0, 0, 0.0)
    assert (usual.frame_batch_size, usual.max_upload_size_mb) == (8, 200)
    assert (usual.min_matches, usual.similarity_threshold) == (3, 0.8)


def test_a_stored_sidecar_that_is_hostile_is_made_anew(library: Path, tmp_path: Path) -> None:
    """Noise, and a database of another video, beside a video: neither is believed."""
    source = tmp_path / "videos"
    source.mkdir()
    (source / "0.mp4").write_bytes((library / "0.mp4").read_bytes())
    (source / "0.mp4.search.sqlite").write_bytes(b"SQLite format 3\0" + bytes(4000))
    chosen = settings(source, tmp_path)

    async def session() -> None:
        async with open_runtime(chosen) as runtime:
            root = (await runtime.tree.root()).place
            assert root is not None
            place = await root.find("0.mp4")
            assert place is not None
            assert (await Pictures(chosen).index(place, None))[0] == "made"

    trio.run(session)
