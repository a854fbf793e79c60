"""Every example of docs/paths.md, on the sample library: what it shows is there, what it refuses is not."""

from __future__ import annotations

import contextlib
import json
import urllib.request
from collections.abc import Awaitable, Callable
from os.path import normpath
from pathlib import Path

import pytest
import trio

from tests.docs.doc_pages import ROOT, code, table
from vfs.config import Settings
from vfs.errors import NotFound
from vfs.found import Found
from vfs.names import parse_derived
from vfs.nodes import Bytes, Directory, Spliced, Symlink
from vfs.runtime import Runtime, open_runtime

PAGE = ROOT / "docs" / "paths.md"
MAGIC = {
    "mp4": (4, b"ftyp"), "jpg": (0, b"\xff\xd8\xff"), "png": (0, b"\x89PNG"), "webp": (8, b"WEBP"),
    "bmp": (0, b"BM"), "ppm": (0, b"P6"), "npy": (0, b"\x93NUMPY"),
}  # fmt: skip


def examples(*header: str) -> list[str]:
    return [path for row in table(PAGE, *header) for path in code(row[0])]


def on(source: str | Path, ask: Callable[[Runtime], Awaitable[None]]) -> None:
    async def session() -> None:
        async with open_runtime(
            Settings.load({"source": str(source), "cache_dir": "none"}, environ={})
        ) as runtime:
            await ask(runtime)

    trio.run(session)


async def content(runtime: Runtime, found: Found) -> bytes:
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    return await runtime.reader.fetch(found.node.layout)


def test_every_path_shown_opens_and_is_what_its_name_says(library: Path) -> None:
    shown = examples("path", "gives")
    assert len(shown) > 30

    async def ask(runtime: Runtime) -> None:
        for path in shown:
            found = await runtime.tree.resolve(path)
            if isinstance(found.node, Symlink):
                found = await runtime.tree.resolve(normpath(f"{path}/../{found.node.target}"))
            if path.endswith("/"):
                assert isinstance(found.node, Directory), path
                await runtime.tree.entries(found)
                continue
            data = await content(runtime, found)
            ending = path.rpartition(".")[2]
            if ending in MAGIC:
                offset, magic = MAGIC[ending]
                assert data[offset : offset + len(magic)] == magic, path
            elif ending == "json":
                json.loads(data)

    on(library, ask)


def test_every_path_said_to_be_absent_is_absent(library: Path) -> None:
    absent = examples("path", "because")
    assert len(absent) > 10

    async def ask(runtime: Runtime) -> None:
        there = []
        for path in absent:
            with contextlib.suppress(NotFound):
                there.append((await runtime.tree.resolve(path)).path)
        assert there == []

    on(library, ask)


def test_all_spellings_of_a_selection_are_the_same_file(library: Path) -> None:
    for spelling, canonical in ((code(a)[0], code(b)[0]) for a, b in table(PAGE, "spelling", "is")):
        parsed = parse_derived(f"{spelling}.mp4")
        assert parsed is not None, spelling
        assert parsed.canonical == f"{canonical}.mp4"
    same = [
        ("a/games/3cc8e82cf07f.mp4@5s.jpg", "a/games/3cc8e82cf07f.mp4@/5s.jpg"),
        ("a/games/3cc8e82cf07f@5-9.mp4", "a/games/3cc8e82cf07f.mp4@/5000ms+00:00:04.mp4"),
    ]

    async def ask(runtime: Runtime) -> None:
        for first, second in same:
            one, other = await runtime.tree.resolve(first), await runtime.tree.resolve(second)
            assert one.version == other.version
            assert await content(runtime, one) == await content(runtime, other)

    on(library, ask)


def test_the_attributes_shown_are_those_there_are(
    bucket: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)
    shown = {name for row in table(PAGE, "attribute", "of") for name in code(row[0])}

    async def ask(runtime: Runtime) -> None:
        clip = await runtime.tree.resolve("a/games/3cc8e82cf07f@5s-9s.mp4")
        stored = await runtime.tree.resolve("a/games/3cc8e82cf07f.mp4")
        preview = await runtime.tree.resolve("a/games/3cc8e82cf07f@5s-7s.gif")
        there = {name for found in (clip, stored, preview) for name in await runtime.tree.xattr_names(found)}
        # Not listed, so that no program copies them along; there for whoever asks.
        asked = {"explain", "presigned_url"}
        assert not asked & there
        assert all([await runtime.tree.xattr(stored, name) for name in asked])
        assert {name.removeprefix("user.reelfs.") for name in shown} <= there | asked
        url = await runtime.tree.xattr(stored, "presigned_url")
        with urllib.request.urlopen(url) as answer:
            assert len(answer.read()) == stored.size

    on("r2://reel-ballers-users", ask)
