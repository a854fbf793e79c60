"""What exists: requests made, freshness, single flight, errors that are not absences."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from vfs.cache.listing import FOLDER
from vfs.cache.metadata import Metadata
from vfs.cache.silence import SILENCE
from vfs.errors import NotFound, StoreError, Unavailable
from vfs.spans import StoredObject
from vfs.storage.base import ObjectDetails, Page
from vfs.storage.memory import MemoryStore

OBJECTS = {
    "a.mp4": b"a",
    "games/x.mp4": b"xx",
    "games/x.mp4.index.sqlite": b"side",
    "games/xy.mp4": b"xy",
    "games/deep/z.mp4": b"z",
}


class Clock:
    """Time that moves when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def run(body: Callable[[Metadata, MemoryStore, Clock], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        store, clock = MemoryStore(OBJECTS), Clock()
        await body(Metadata(store, clock=clock, **settings), store, clock)

    trio.run(main)


def asked(store: MemoryStore) -> list[str]:
    """The requests so far, and forget them."""
    log = [request.operation for request in store.log]
    store.log.clear()
    return log


def test_a_point_lookup_never_lists_the_folder() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        found = await metadata.find("games/", "x.mp4")
        assert isinstance(found, StoredObject)
        assert sorted(asked(store)) == ["head", "list"]
        assert await metadata.find("games/", "x.mp4") is found
        assert await metadata.find("games/", "deep") is FOLDER
        assert sorted(asked(store)) == ["head", "list"]
        assert await metadata.find("games/", "none") is None
        assert len(asked(store)) == 2
        assert await metadata.find("games/", "none") is None
        assert asked(store) == []

    run(body)


def test_not_found_is_forgotten_sooner_than_found() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        assert await metadata.find("games/", "none") is None
        store.replace("games/none", b"now")
        clock.now += 6
        assert isinstance(await metadata.find("games/", "none"), StoredObject)

    run(body, negative_ttl=5.0)


def test_a_prefix_of_names_is_one_list_and_answers_for_its_names() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        nearby = await metadata.starting("games/", "x.mp4")
        assert set(nearby.files) == {"x.mp4", "x.mp4.index.sqlite"}
        assert asked(store) == ["list"]
        assert await metadata.find("games/", "x.mp4.index.sqlite") == nearby.files["x.mp4.index.sqlite"]
        assert await metadata.find("games/", "x.mp4.index.json") is None
        assert set((await metadata.starting("games/", "x.mp4.i")).files) == {"x.mp4.index.sqlite"}
        assert asked(store) == []

    run(body)


def test_a_listing_answers_everything_until_it_is_old() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        listing = await metadata.folder("games/")
        assert set(listing.files) == {"x.mp4", "xy.mp4", "x.mp4.index.sqlite"}
        assert listing.folders == {"deep"}
        assert asked(store) == ["list"]
        await metadata.find("games/", "none")
        await metadata.starting("games/", "none")
        await metadata.starting("games/", "x")
        assert asked(store) == []
        assert metadata.remaining("games/") == 60
        clock.now += 60
        await metadata.folder("games/")
        assert asked(store) == ["list"]

    run(body)


def test_what_was_created_after_the_listing_is_found_after_negative_ttl() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        await metadata.folder("games/")
        store.replace("games/new.mp4", b"new")
        store.replace("games/other.mp4", b"other")
        assert await metadata.find("games/", "new.mp4") is None
        clock.now += 2
        asked(store)
        assert isinstance(await metadata.find("games/", "new.mp4"), StoredObject)
        assert sorted(asked(store)) == ["head", "list"]
        assert set((await metadata.starting("games/", "other")).files) == {"other.mp4"}
        assert asked(store) == ["list"]
        assert {"new.mp4", "other.mp4"} <= set((await metadata.folder("games/")).files)
        assert asked(store) == []

    run(body, negative_ttl=1.0)


def test_what_a_prefix_of_names_has_not_is_not_ruled_out_for_long() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        assert not (await metadata.starting("games/", "n")).files
        assert await metadata.find("games/", "new.mp4") is None
        assert asked(store) == ["list"]
        store.replace("games/new.mp4", b"new")
        clock.now += 2
        assert set((await metadata.starting("games/", "new")).files) == {"new.mp4"}
        assert isinstance(await metadata.find("games/", "new.mp4"), StoredObject)
        assert asked(store) == ["list"]

    run(body, negative_ttl=1.0)


def test_the_version_is_asked_for_again_after_attr_ttl_and_put_everywhere() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        old = (await metadata.folder("games/")).files["x.mp4"]
        asked(store)
        assert await metadata.current(old) == old
        assert asked(store) == []
        clock.now += 2
        new = store.replace("games/x.mp4", b"longer")
        assert await metadata.current(old) == new
        assert asked(store) == ["head"]
        assert (await metadata.folder("games/")).files["x.mp4"] == new
        store.remove("games/x.mp4")
        clock.now += 2
        with pytest.raises(NotFound):
            await metadata.current(new)
        assert await metadata.find("games/", "x.mp4") is None

    run(body)


def test_reading_bytes_of_the_known_version_is_as_good_as_asking() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        old = (await metadata.folder("games/")).files["x.mp4"]
        asked(store)
        clock.now += 2
        metadata.confirm(old, clock.now - 0.5)
        assert await metadata.current(old) == old
        assert asked(store) == []
        clock.now += 0.6  # a second after it was asked for, not after it came
        new = store.replace("games/x.mp4", b"longer")
        assert await metadata.current(old) == new
        clock.now += 2
        metadata.confirm(old, clock.now)  # a late answer about a version that is not the one known any more
        asked(store)
        assert await metadata.current(new) == new
        assert asked(store) == ["head"]

    run(body)


class Away(MemoryStore):
    """A store that can be away: refusing at once, or not answering at all."""

    away: str = ""
    offline: bool = True

    async def head(self, key: str) -> ObjectDetails:
        await self._away()
        return await super().head(key)

    async def list(self, *args: Any, **settings: Any) -> Page:
        await self._away()
        return await super().list(*args, **settings)

    async def _away(self) -> None:
        if self.away == "refusing":
            raise Unavailable("connection refused")
        if self.away == "silent":
            await trio.sleep_forever()
        if self.away == "slow":
            await trio.sleep(20)


@pytest.mark.parametrize("how", ["refusing", "silent"])
def test_while_the_store_is_away_the_version_known_last_counts(
    how: str, expected_logs: Callable[[str], None]
) -> None:
    """A1: what is cached can be opened, after a short wait, then at once; later the store is asked again."""
    expected_logs("the store does not answer")

    async def main() -> None:
        store, clock = Away(OBJECTS), Clock()
        metadata = Metadata(store, clock=clock)
        old = (await metadata.folder("games/")).files["x.mp4"]
        new = store.replace("games/x.mp4", b"longer")
        store.away = how
        clock.now += 2
        assert await metadata.current(old) == old
        began = trio.current_time()
        assert await metadata.current(old) == old
        assert trio.current_time() == began
        clock.now += SILENCE
        assert await metadata.current(old) == old
        store.away = ""
        assert await metadata.current(old) == old
        clock.now += SILENCE
        assert await metadata.current(old) == new

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


@pytest.mark.parametrize("how", ["refusing", "silent"])
def test_while_the_store_is_away_what_was_listed_last_counts(
    how: str, expected_logs: Callable[[str], None]
) -> None:
    """C3: of listings, prefixes and single lookups; what nobody has asked about is an error."""
    expected_logs("the store does not answer")

    async def main() -> None:
        store, clock = Away(OBJECTS), Clock()
        metadata = Metadata(store, clock=clock)
        games = await metadata.folder("games/")
        await metadata.find("", "a.mp4")
        await metadata.starting("games/deep/", "z")
        store.replace("games/later.mp4", b"later")
        store.away = how
        clock.now += 1000
        assert (await metadata.folder("games/")).files == games.files
        began = trio.current_time()
        assert isinstance(await metadata.find("games/", "x.mp4"), StoredObject)
        assert await metadata.find("games/", "x@5s.jpg") is None  # nothing of that name was stored by then
        assert await metadata.find("games/", "xy.mp4.index.sqlite") is None
        assert isinstance(await metadata.find("", "a.mp4"), StoredObject)
        assert list((await metadata.starting("games/deep/", "z")).files) == ["z.mp4"]
        assert trio.current_time() == began  # who comes later does not wait
        for ask in (
            lambda: metadata.folder("never/seen/"),
            lambda: metadata.find("games/", "later.mp4"),
            lambda: metadata.starting("games/", "lat"),
        ):
            with pytest.raises((Unavailable, trio.TooSlowError)), trio.fail_after(100):
                await ask()
        clock.now += SILENCE
        store.away = ""
        assert "later.mp4" in (await metadata.folder("games/")).files

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_store_that_is_slow_is_waited_for() -> None:
    async def main() -> None:
        store, clock = Away(OBJECTS), Clock()
        store.offline = False
        metadata = Metadata(store, clock=clock)
        await metadata.folder("games/")
        store.replace("games/later.mp4", b"later")
        store.away = "slow"
        clock.now += 1000
        assert "later.mp4" in (await metadata.folder("games/")).files

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_what_others_changed_is_told_as_it_is_noticed() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        told: list[tuple[str, object]] = []

        def noticed(key: str, now: object) -> None:
            told.append((key, now.size if isinstance(now, StoredObject) else now))

        metadata.noticed = noticed
        first = (await metadata.folder("games/")).files["x.mp4"]
        assert told == []
        clock.now += 2
        store.replace("games/x.mp4", b"longer")
        await metadata.current(first)
        assert told == [("games/x.mp4", 6)]
        store.remove("games/xy.mp4")
        store.replace("games/new/a.mp4", b"a")
        store.replace("games/x.mp4.index.sqlite", b"other")
        clock.now += 100
        await metadata.folder("games/")
        expected = [("games/new", FOLDER), ("games/x.mp4.index.sqlite", 5), ("games/xy.mp4", None)]
        assert told[1:] == expected
        clock.now += 100
        store.replace("games/x.mp4", b"longer still")
        await metadata.find("games/", "x.mp4")  # looked up by itself
        store.replace("games/late.mp4", b"late")
        await metadata.find("games/", "late.mp4")
        store.remove("games/x.mp4.index.sqlite")
        assert await metadata.find("games/", "x.mp4.index.sqlite") is None
        expected += [("games/x.mp4", 12), ("games/late.mp4", 4), ("games/x.mp4.index.sqlite", None)]
        assert told[1:] == expected
        clock.now += 100
        await metadata.folder("games/")
        assert told[1:] == expected  # once each
        metadata.forget_at("games")  # refreshed, or an event: that was told already
        store.remove("games/x.mp4")
        await metadata.folder("games/")
        assert told[1:] == expected

    run(body)


def test_immutable_keys_are_not_asked_for_again() -> None:
    async def main() -> None:
        store, clock = MemoryStore(OBJECTS), Clock()
        metadata = Metadata(store, clock=clock, immutable=["games/"])
        old = (await metadata.folder("games/")).files["x.mp4"]
        clock.now += 30
        asked(store)
        assert await metadata.current(old) == old
        assert asked(store) == []

    trio.run(main)


def test_callers_at_the_same_time_share_one_request() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(metadata.folder, "games/")
                nursery.start_soon(metadata.find, "", "a.mp4")
        assert sorted(asked(store)) == ["head", "list", "list"]

    run(body)


def test_who_asks_for_others_may_be_cancelled() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        gate = trio.Event()
        ask = store.list

        async def slow(
            prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
        ) -> Page:
            await gate.wait()
            return await ask(prefix, delimiter=delimiter, token=token, limit=limit)

        store.list = slow  # type: ignore[method-assign]
        results = []

        async def second() -> None:
            results.append(await metadata.folder("games/"))

        async with trio.open_nursery() as nursery:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(metadata.folder, "games/")
                    await trio.testing.wait_all_tasks_blocked()
                    nursery.start_soon(second)
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
            gate.set()
        assert results

    run(body)


def test_an_error_is_neither_remembered_nor_an_absence() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        ask = store.head

        async def broken(key: str) -> ObjectDetails:
            raise StoreError("no answer")

        store.head = broken  # type: ignore[method-assign]
        with pytest.raises(StoreError):
            await metadata.find("games/", "x.mp4")
        store.head = ask  # type: ignore[method-assign]
        assert isinstance(await metadata.find("games/", "x.mp4"), StoredObject)

    run(body)


def test_a_listing_of_several_pages_is_whole_or_an_error() -> None:
    async def main() -> None:
        store = MemoryStore({f"many/{n:05}": b"" for n in range(2500)})
        metadata = Metadata(store)
        assert len((await metadata.folder("many/")).files) == 2500
        assert asked(store) == ["list"] * 3
        ask = store.list

        async def third_fails(
            prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
        ) -> Page:
            if len(store.log) == 2:
                raise StoreError("third page")
            return await ask(prefix, delimiter=delimiter, token=token, limit=limit)

        store.list = third_fails  # type: ignore[method-assign]
        metadata.forget("many/x")
        with pytest.raises(StoreError):
            await metadata.folder("many/")

    trio.run(main)


def test_zero_ttls_ask_every_time_and_end() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        for _ in range(2):
            await metadata.folder("games/")
            await metadata.find("games/", "x.mp4")
            await metadata.current(StoredObject("games/x.mp4", 2, '"v2"'))
        assert len(asked(store)) == 8

    run(body, dir_ttl=0.0, attr_ttl=0.0, negative_ttl=0.0)


def test_a_missing_folder_is_not_found_and_the_root_may_be_empty() -> None:
    async def main() -> None:
        metadata = Metadata(MemoryStore({}))
        assert not (await metadata.folder("")).files
        with pytest.raises(NotFound):
            await metadata.folder("none/")

    trio.run(main)


class Late(MemoryStore):
    """Looks at once, and answers when it is let."""

    def __init__(self) -> None:
        super().__init__(OBJECTS)
        self.let = trio.Event()

    async def list(
        self, prefix: str = "", *, delimiter: str = "/", token: str | None = None, limit: int = 1000
    ) -> Page:
        page = await super().list(prefix, delimiter=delimiter, token=token, limit=limit)
        await self.let.wait()
        return page

    async def head(self, key: str) -> ObjectDetails:
        try:
            return await super().head(key)
        finally:
            with trio.CancelScope(shield=True):
                await self.let.wait()


async def _folder(metadata: Metadata) -> bool:
    return "new.mp4" in (await metadata.folder("games/")).files


async def _starting(metadata: Metadata) -> bool:
    return "new.mp4" in (await metadata.starting("games/", "new")).files


async def _find(metadata: Metadata) -> bool:
    return await metadata.find("games/", "new.mp4") is not None


@pytest.mark.parametrize("ask", [_folder, _starting, _find])
def test_what_was_asked_before_it_was_forgotten_does_not_count(
    ask: Callable[[Metadata], Awaitable[bool]],
) -> None:
    """An event, a refresh, a write of our own: an answer that was on its way then is of before."""

    async def main() -> None:
        store = Late()
        metadata = Metadata(store, dir_ttl=60.0, negative_ttl=60.0)
        before: list[bool] = []

        async def asking() -> None:
            before.append(await ask(metadata))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asking)
            await trio.testing.wait_all_tasks_blocked()
            store.replace("games/new.mp4", b"new")
            metadata.forget_at("games/new.mp4")
            store.let.set()
        assert before == [False]
        assert await ask(metadata)
        store.log.clear()
        assert await ask(metadata)
        assert asked(store) == []  # kept, as ever

    trio.run(main)


def test_what_an_event_names_is_listed_with_the_folders_above_it() -> None:
    async def body(metadata: Metadata, store: MemoryStore, clock: Clock) -> None:
        assert (await metadata.folder("")).folders == {"games"}
        await metadata.folder("games/")
        await metadata.folder("games/deep/")
        store.replace("fresh/er/a.mp4", b"a")
        metadata.forget_at("fresh/er/a.mp4")
        assert (await metadata.folder("")).folders == {"games", "fresh"}
        assert set((await metadata.folder("fresh/er/")).files) == {"a.mp4"}
        store.remove("games/deep/z.mp4")
        metadata.forget_at("games/deep/z.mp4")
        assert (await metadata.folder("games/")).folders == set()
        asked(store)
        metadata.forget_at("games/x.mp4")  # of a folder with more in it: those above stay
        await metadata.folder("")
        assert asked(store) == []

    run(body)
