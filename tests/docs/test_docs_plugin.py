"""The plugin on docs/plugins.md is a real one: loaded from the page, mounted, read through."""

from __future__ import annotations

import inspect
import sys
import types

import pytest
import trio

import vfs
from tests.docs.doc_pages import ROOT, blocks, code, table
from vfs import Bytes, Directory, Spliced, hookspecs
from vfs.config import Settings
from vfs.control import Call
from vfs.errors import Damaged, NotFound
from vfs.runtime import open_runtime
from vfs.testing import MemoryStore

PAGE = ROOT / "docs" / "plugins.md"


CODE, CONTROL, TESTS = blocks(PAGE, "python")


def loaded(name: str, body: str) -> types.ModuleType:
    """A block of the page as the module it would be."""
    module = types.ModuleType(name)
    exec(compile(body, f"{PAGE.name} ({name})", "exec"), module.__dict__)
    return module


@pytest.fixture
def plugin() -> types.ModuleType:
    return loaded("reelfs_chapters", CODE.body)


# The test file on the page imports the plugin by its name; pytest collects its class here.
sys.modules["reelfs_chapters"] = loaded("reelfs_chapters", CODE.body)
TestChapters = loaded("test_chapters", TESTS.body).TestChapters
del sys.modules["reelfs_chapters"]


def test_it_does_what_the_page_says(plugin: types.ModuleType) -> None:
    store = MemoryStore(
        {
            "games/a.mp4": bytes(range(256)),
            "games/a.mp4.chapters.txt": b"0 Kick-off\n65.5 First goal\n",
            "games/b.mp4": b"short",
            "games/c.mp4": b"c",
            "games/c.mp4.chapters.txt": b"soon Kick-off\n",
        }
    )
    settings = Settings.load({"source": "memory://"}, environ={})

    async def session() -> None:
        async with open_runtime(settings, store=store, extra_plugins=[("chapters", plugin)]) as runtime:
            tree = runtime.tree
            companion = await tree.resolve("games/a.mp4@")
            assert isinstance(companion.node, Directory)
            assert {"head.bin", "chapters.vtt"} <= set(await tree.entries(companion))
            found = await tree.resolve("games/a.mp4@/chapters.vtt")
            assert isinstance(found.node, Bytes)
            text = (await tree.settle(found)).decode()
            assert text.startswith("WEBVTT\n\n00:00:00.000 --> 00:01:05.500\nKick-off\n")
            head = await tree.resolve("games/a@head.bin")
            assert isinstance(head.node, Spliced)
            assert head.size == 64
            assert await runtime.reader.fetch(head.node.layout) == bytes(range(64))
            assert (await tree.resolve("games/b.mp4@/head.bin")).size == 5
            with pytest.raises(NotFound):
                await tree.resolve("games/b.mp4@/chapters.vtt")
            damaged = await tree.resolve("games/c.mp4@/chapters.vtt")
            with pytest.raises(Damaged, match="soon"):
                await tree.settle(damaged)

    trio.run(session)


def test_the_command_of_the_mount_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    commands = loaded("reelfs_chapters_control", CONTROL.body)
    store = MemoryStore({"games/a.mp4": b"a", "games/b.mp4": b"b"})
    settings = Settings.load({"source": "memory://"}, environ={})

    async def session() -> None:
        async with open_runtime(settings, store=store, extra_plugins=[("chapters", commands)]) as runtime:

            async def progress(value: object) -> None:
                raise AssertionError("it says nothing of its progress")

            assert await runtime.control.run("chapters.count", Call({}, progress)) == {"files": 2}
            none = Call({"path": "none"}, progress)
            assert await runtime.control.run("chapters.count", none) == {"files": 0}

    trio.run(session)
    monkeypatch.setattr(
        commands, "ask_mount", lambda *asked: {"files": 7} if asked[1] == "chapters.count" else None
    )
    assert commands.files_of("/mnt") == 7


def test_every_hook_is_on_the_page_with_its_arguments() -> None:
    rows = {code(row[0])[0]: set(code(row[1])) for row in table(PAGE, "hook", "arguments")}
    hooks = {
        name: set(inspect.signature(function).parameters)
        for name, function in inspect.getmembers(hookspecs, inspect.isfunction)
        if hasattr(function, "vfs_spec")
    }
    assert rows == hooks


def test_what_the_page_names_is_public() -> None:
    imported = CODE.body.partition("from vfs import ")[2].partition("\n")[0].split(", ")
    assert set(imported) <= set(vfs.__all__)
    assert {"in_thread", "in_worker", "parse_derived"} <= set(vfs.__all__)
