"""A folder as a store, when the power goes: what a call has done when it returns outlives that; before
it returns there is the old or the new.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.power.disk import PAGE, Left
from tests.power.lossy import LossyDisk, LossyDisks, lossy_disks
from vfs.errors import ReelfsError
from vfs.storage.local import LocalStore
from vfs.storage.localwrite import UPLOADS

pytestmark = pytest.mark.fuse

OLD, NEW, FILM = (random.Random(n).randbytes(3 * PAGE + n) for n in range(3))
CUTS = [(Left.NOTHING, 0), (Left.NAMES, 0), *((Left.SOME, seed) for seed in range(4))]
State = dict[str, bytes]
Work = Callable[[LocalStore], Awaitable[object]]


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyDisks]:
    with lossy_disks(tmp_path_factory.mktemp("lossy") / "disks") as disks:
        yield disks


def files(root: Path) -> State:
    """What is in a folder, but for what waits for its name."""
    found = {str(path.relative_to(root)): path for path in root.rglob("*")}
    return {
        name: path.read_bytes() if path.is_file() else b"folder"
        for name, path in found.items()
        if not name.startswith(UPLOADS)
    }


async def put(store: LocalStore) -> None:
    await store.put("a", OLD, replaces=None)


async def replace(store: LocalStore) -> None:
    await store.put("a", NEW, replaces=(await store.head("a")).object)


async def put_deep(store: LocalStore) -> None:
    await store.put("d/e/b", OLD, replaces=None, metadata={"who": "me"})


async def copy(store: LocalStore) -> None:
    await store.copy((await store.head("d/e/b")).object, "f/c", replaces=None)


async def make(store: LocalStore) -> None:
    await store.put("g/", b"", replaces=None)


async def in_parts(store: LocalStore) -> None:
    name = await store.start_upload("h/film", metadata={"who": "me"})
    parts = [await store.put_part("h/film", name, number, FILM[:PAGE]) for number in (1, 2)]
    await store.complete_upload("h/film", name, parts, replaces=None)


async def delete(store: LocalStore) -> None:
    await store.delete((await store.head("d/e/b")).object)


IN_D = {"d": b"folder", "d/e": b"folder", "d/e/b": OLD}
WORKS: list[tuple[Work, State, tuple[str, ...]]] = [
    (put, {"a": OLD}, ()),
    (replace, {"a": NEW}, ()),
    (put_deep, IN_D, ()),
    (copy, {"f": b"folder", "f/c": OLD}, ()),
    (make, {"g": b"folder"}, ()),
    (in_parts, {"h": b"folder", "h/film": FILM[:PAGE] * 2}, ()),
    (delete, {}, ("d/e/b",)),
]


def after(state: State, new: State, gone: tuple[str, ...]) -> State:
    return {name: body for name, body in (state | new).items() if name not in gone}


def test_what_a_call_has_done_outlives_a_power_cut(disks: LossyDisks) -> None:
    disk = disks.make()
    state: State = {}
    for work, new, gone in WORKS:
        trio.run(work, LocalStore(disk.path))
        state = after(state, new, gone)
        for cut in CUTS:
            found = disk.cut(*cut)
            assert files(found.path) == state, (work.__name__, cut)
            found.drop()


def test_before_it_returns_there_is_the_old_or_the_new(disks: LossyDisks) -> None:
    state: State = {}
    disk = disks.make()
    for work, new, gone in WORKS:
        following = after(state, new, gone)
        for at in range(1, 60):
            now = disk.cut(Left.ALL)  # all that was done before is durable: see above
            now.arm(at)
            if not trio.run(cut_off, work, now):
                break
            for cut in CUTS:
                found = now.cut(*cut)
                seen = {name: body for name, body in files(found.path).items() if body != b"folder"}
                legal = [{n: b for n, b in s.items() if b != b"folder"} for s in (state, following)]
                assert seen in legal, (work.__name__, at, cut)
                found.drop()
            now.drop()
        else:
            raise AssertionError("it has no end")
        trio.run(work, LocalStore(disk.path))
        state = following


async def cut_off(work: Any, disk: LossyDisk) -> bool:
    """Whether the power went in the middle."""
    try:
        await work(LocalStore(disk.path))
    except (ReelfsError, OSError):
        return True
    return False


def test_an_upload_in_parts_goes_on_or_begins_anew(disks: LossyDisks) -> None:
    disk = disks.make()

    async def begin() -> tuple[str, Any]:
        store = LocalStore(disk.path)
        name = await store.start_upload("film", metadata={"who": "me"})
        return name, await store.put_part("film", name, 1, FILM)

    name, part = trio.run(begin)
    for cut in CUTS:
        found = disk.cut(*cut)

        async def go_on(root: Path = found.path) -> State:
            store = LocalStore(root)
            assert await store.uploads() == {name: "film"}
            await store.complete_upload("film", name, [part], replaces=None)
            assert (await store.head("film")).metadata["who"] == "me"
            return files(root)

        assert trio.run(go_on) == {"film": FILM}
