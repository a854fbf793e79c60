"""The tree: precedence, companions, siblings, isolation of failing views, freshness, odd keys."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

import pytest
import trio
import trio.testing

import vfs
from vfs import Bytes, Directory, Inline, Layout, Node, Place, Spliced, StoredObject, Symlink
from vfs.config import Settings
from vfs.pytest_plugin import ExpectedLogs
from vfs.runtime import Runtime, open_runtime
from vfs.storage.memory import MemoryStore


class Letters:
    """A view of `.txt` files: `N.part` is the first N bytes, spliced; `upper.txt` is made; `slow` counts."""

    name = "letters"

    def __init__(self) -> None:
        self.made = 0

    def applies(self, place: Place) -> bool:
        return not place.is_folder and place.name.endswith((".txt", ".text"))

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        return {"upper.txt": None, "links": Directory(entries=self._links)}

    async def _links(self) -> Mapping[str, Node | None]:
        return {"up": Symlink(target="../upper.txt")}

    async def resolve(self, place: Place, name: str) -> Node | None:
        stem, _, kind = name.rpartition(".")
        if kind == "part" and stem.isdigit():
            if int(stem) > place.size:
                raise vfs.OutOfRange(f"{place.path} has {place.size} bytes")
            return Spliced(layout=Layout((Inline(b">"), place.extent(0, int(stem)))))
        if name == "links":
            return Directory(entries=self._links)
        if name != "upper.txt":
            return None

        async def produce() -> bytes:
            self.made += 1
            return (await place.read(0, place.size)).upper()

        return Bytes(produce=produce, version=f"upper.1 {place.version}")


class Bomb:
    """A view that fails whenever it is asked."""

    name = "bomb"

    def applies(self, place: Place) -> bool:
        return True

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        raise RuntimeError("entries of bomb")

    async def resolve(self, place: Place, name: str) -> Node | None:
        raise RuntimeError("resolve of bomb")


class Saved:
    """A view of folders: lists `notes/` in each."""

    name = "saved"

    def applies(self, place: Place) -> bool:
        return place.is_folder

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        return {"virtual": None}

    async def resolve(self, place: Place, name: str) -> Node | None:
        if name != "virtual":
            return None

        async def produce() -> bytes:
            return f"in {place.path}".encode()

        return Bytes(produce=produce, version=f"saved {place.path}")


class Plugin:
    """Registers views the way any plugin does."""

    def __init__(self, *views: vfs.View) -> None:
        self._views = views

    @vfs.hookimpl
    def vfs_views(self) -> list[vfs.View]:
        return list(self._views)


OBJECTS = {
    "a.txt": b"alpha",
    "b.txt": b"beta in txt",
    "b.text": b"beta in text",
    "games/x.txt": b"x in games",
    "games/deep/er/y.txt": b"deeper",
    "real.txt": b"real",
    "real.txt@2.part": b"a real key",
}

Body = Callable[[Runtime, MemoryStore], Awaitable[None]]


def run(body: Body, *views: vfs.View, objects: Mapping[str, bytes] = OBJECTS, **settings: object) -> None:
    """Run `body` with a tree over `objects` and the given views."""

    async def main() -> None:
        store = MemoryStore(dict(objects))
        plugin = [("test", Plugin(*views))]
        async with open_runtime(
            Settings.load({"source": "memory://test", **settings}, environ={}),
            store=store,
            extra_plugins=plugin,
        ) as runtime:
            await body(runtime, store)

    trio.run(main)


async def content(runtime: Runtime, path: str) -> bytes:
    """All bytes of a file."""
    found = await runtime.tree.resolve(path)
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    return await runtime.reader.fetch(found.node.layout)


def test_stored_objects_stand_at_their_keys() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        root = await runtime.tree.root()
        assert set(await runtime.tree.entries(root)) == {
            "a.txt",
            "b.txt",
            "b.text",
            "games",
            "real.txt",
            "real.txt@2.part",
            "search",
        }
        assert await content(runtime, "games/deep/er/y.txt") == b"deeper"
        found = await runtime.tree.resolve("games/x.txt")
        assert (found.size, found.attributes["key"]) == (10, "games/x.txt")
        with pytest.raises(vfs.NotFound):
            await runtime.tree.resolve("games/none.txt")
        with pytest.raises(vfs.NotFound):
            await runtime.tree.resolve("nowhere/x.txt")
        with pytest.raises(vfs.NotADirectory):
            await runtime.tree.resolve("a.txt/x")

    run(body)


def test_siblings_and_companions_are_the_same_nodes() -> None:
    """`FILE@/SEL.FMT` is the same node as `NAME@SEL.FMT`."""

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        sibling = await runtime.tree.resolve("games/x.txt@3.part")
        inside = await runtime.tree.resolve("games/x.txt@/3.part")
        short = await runtime.tree.resolve("games/x@3.part")
        assert sibling.version == inside.version == short.version
        assert sibling.size == 4
        assert await content(runtime, "games/x@3.part") == b">x i"
        companion = await runtime.tree.resolve("games/x.txt@")
        assert set(await runtime.tree.entries(companion)) == {"upper.txt", "links"}
        link = await runtime.tree.resolve("games/x.txt@/links/up")
        assert isinstance(link.node, Symlink)
        assert "x.txt@" not in await runtime.tree.entries(await runtime.tree.resolve("games"))

    run(body, Letters())


def test_show_derived_lists_the_companions() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        listed = await runtime.tree.entries(await runtime.tree.resolve("games"))
        assert isinstance(listed["x.txt@"].node, Directory)

    run(body, Letters(), show_derived=True)


def test_of_several_files_the_extension_then_the_alphabet_decides() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert (await content(runtime, "b@upper.txt")) == b"BETA IN TXT"
        assert (await content(runtime, "b@4.part")) == b">beta"
        assert (await runtime.tree.resolve("b@4.part")).attributes["source"] == "b.text"
        assert (await runtime.tree.resolve("b.txt@4.part")).attributes["source"] == "b.txt"

    run(body, Letters())


def test_a_name_that_is_not_made_of_a_file_says_so() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        for path, text in (
            (
                "a.txt@lower.txt",
                r"a\.txt@lower\.txt: lower\.txt is not made of a\.txt; a\.txt@/ lists what is",
            ),
            ("games/x@lower.txt", r"lower\.txt is not made of games/x\.txt"),
            ("nothing@lower.txt", "no such file: nothing@lower.txt"),
            ("a.txt@99999.part", "a.txt has 5 bytes"),
        ):
            with pytest.raises(vfs.NotFound, match=text) as caught:
                await runtime.tree.resolve(path)
            assert caught.value.ttl == runtime.settings.negative_ttl  # kept by the kernel as any other

    run(body, Letters())


def test_a_real_key_wins_and_the_collision_is_reported() -> None:
    """C5: real keys win, and the collision appears in `.reelfs/collisions`."""

    class Timed(Letters):
        async def resolve(self, place: Place, name: str) -> Node | None:
            return Spliced(layout=Layout((Inline(b"derived"),)))

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert await content(runtime, "c.txt@5s.jpg") == b"stored"
        assert await content(runtime, "c.txt@6s.jpg") == b"derived"
        assert "c.txt@5s.jpg" in runtime.status.collisions

    run(body, Timed(), objects={"c.txt": b"c", "c.txt@5s.jpg": b"stored"})


def test_what_is_made_whole_is_made_once_per_version() -> None:
    letters = Letters()

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(content, runtime, "a@upper.txt")
        assert letters.made == 1
        assert await content(runtime, "a.txt@/upper.txt") == b"ALPHA"
        assert letters.made == 1

    run(body, letters)


def test_a_failing_view_spoils_its_own_names_alone(expected_logs: ExpectedLogs) -> None:
    """A view that raises is logged with its name and counted; another's answer wins; if none answers, EIO."""

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        assert await content(runtime, "a@upper.txt") == b"ALPHA"
        assert await content(runtime, "a.txt") == b"alpha"
        assert set(await runtime.tree.entries(await runtime.tree.resolve("games"))) == {
            "x.txt",
            "deep",
            "virtual",
        }
        with pytest.raises(vfs.ReelfsError, match="bomb failed") as failure:
            await runtime.tree.resolve("a@nothing.part")
        assert not isinstance(failure.value, vfs.NotFound)
        assert any("bomb" in note for note in runtime.status.notes("a.txt"))

    expected_logs("bomb failed")
    run(body, Bomb(), Letters(), Saved())


def test_a_companion_of_only_failing_views_is_an_error_not_an_empty_directory(
    expected_logs: ExpectedLogs,
) -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        companion = await runtime.tree.resolve("b.text@")
        with pytest.raises(vfs.ReelfsError, match="bomb"):
            await runtime.tree.entries(companion)

    expected_logs("bomb failed")
    run(body, Bomb())


def test_each_view_that_fails_to_list_is_told_of(expected_logs: ExpectedLogs) -> None:
    """The second one as the first: a view that fails is logged with its name, counted, noted for the path."""

    class Second(Bomb):
        name = "second"

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        await runtime.tree.entries(await runtime.tree.resolve("games"))
        assert {runtime.status.value("view_failures", name) for name in ("bomb", "second")} == {1}
        assert ["bomb" in note or "second" in note for note in runtime.status.notes("games")] == [True, True]

    expected_logs("bomb failed")
    expected_logs("second failed")
    run(body, Bomb(), Second())


def test_out_of_range_is_not_found() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        with pytest.raises(vfs.NotFound, match="has 5 bytes"):
            await runtime.tree.resolve("a@999.part")

    run(body, Letters())


def test_an_open_of_a_replaced_file_is_stale_and_the_next_lookup_sees_the_new_version() -> None:
    """C1, C2: an open handle sees one version, else ESTALE; a new open revalidates within attr_ttl."""

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        old = await runtime.tree.resolve("games/x.txt")
        derived = await runtime.tree.resolve("games/x@3.part")
        store.replace("games/x.txt", b"replaced!")
        with pytest.raises(vfs.Stale):
            await runtime.tree.refresh(old)
        with pytest.raises(vfs.Stale):
            await runtime.tree.refresh(derived)
        new = await runtime.tree.resolve("games/x.txt")
        assert new.version != old.version
        assert await runtime.tree.refresh(new) == new
        assert await content(runtime, "games/x@3.part") == b">rep"

    run(body, Letters(), attr_ttl="0s")


def test_names_that_are_no_paths_are_refused() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        root = await runtime.tree.root()
        for name in ("..", ".", "", "a/b", "a\0b"):
            with pytest.raises(vfs.NotFound):
                await runtime.tree.lookup(root, name)
        with pytest.raises(vfs.NameTooLong):
            await runtime.tree.lookup(root, "x" * 300)

    run(body)


ODD = {
    "a//b.txt": b"empty segment",
    "../up.txt": b"dots",
    "x/./y.txt": b"dot",
    "l" * 300 + ".txt": b"long",
    "both": b"the file",
    "both/child.txt": b"the child",
    "nul\0name": b"nul",
    "fine.txt": b"fine",
    "marker/": b"",
    "marker/in.txt": b"in",
}


def test_keys_that_cannot_be_paths_are_reachable_percent_encoded() -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        root = await runtime.tree.root()
        assert root.place is not None
        assert "both" in await root.place.unpathable()
        assert set(await runtime.tree.entries(root)) == {"a", "x", "both", "fine.txt", "marker", "search"}
        assert set(await runtime.tree.entries(await runtime.tree.resolve("both"))) == {"child.txt"}
        assert set(await runtime.tree.entries(await runtime.tree.resolve("marker"))) == {"in.txt"}
        assert "both" in runtime.status.collisions
        odd = await root.place.unpathable()
        stored = {place.object.key: await place.read(0, place.size) for place in odd.values()}
        unseen = {"a//b.txt", "../up.txt", "x/./y.txt", "l" * 300 + ".txt", "both", "nul\0name"}
        assert stored == {key: ODD[key] for key in unseen}
        assert all(vfs.unescape(name) == place.object.key for name, place in odd.items() if "~" not in name)

    run(body, objects=ODD)


def test_an_error_of_the_store_is_never_an_absence() -> None:
    """A listing is all or nothing, and "I could not ask" is not "there is none"."""

    async def body(runtime: Runtime, store: MemoryStore) -> None:
        games = await runtime.tree.resolve("games")

        async def broken(*args: object, **kwargs: object) -> StoredObject:
            raise vfs.StoreError("no answer")

        store.list = store.head = broken  # type: ignore[method-assign,assignment]
        for path in ("games/x.txt", "games/x@3.part", "games/deep"):
            with pytest.raises(vfs.StoreError):
                await runtime.tree.resolve(path)
        with pytest.raises(vfs.StoreError):
            await runtime.tree.entries(games)

    run(body, Letters())


def test_listings_cost_one_request_a_folder_and_none_while_fresh(tmp_path: Path) -> None:
    async def body(runtime: Runtime, store: MemoryStore) -> None:
        async def walk(path: str) -> None:
            for name, found in (await runtime.tree.entries(await runtime.tree.resolve(path))).items():
                if isinstance(found.node, Directory):
                    await walk(f"{path}/{name}")

        await walk("")
        first = len(store.log)
        assert first == 4
        await walk("")
        assert len(store.log) == first

    run(body)


def test_signing_a_url_does_not_hold_up_the_loop() -> None:
    """Credentials that expired are renewed for it, over the network: everybody else is served meanwhile."""

    class Signing(MemoryStore):
        served = threading.Event()

        def presign(self, key: str, *, expires: int = 3600, put: bool = False) -> str | None:
            return f"https://store/{key}" if self.served.wait(5) else None

    async def main() -> None:
        store, urls = Signing(OBJECTS), []
        async with open_runtime(Settings.load({"source": "memory://"}, environ={}), store=store) as runtime:
            found = await runtime.tree.resolve("a.txt")

            async def sign() -> None:
                urls.append(await runtime.tree.xattr(found, "presigned_url"))

            async with trio.open_nursery() as nursery:
                nursery.start_soon(sign)
                await trio.testing.wait_all_tasks_blocked()
                store.served.set()
        assert urls == ["https://store/a.txt"]

    trio.run(main)
