"""Every store passes the same contract: in memory, a folder, and S3 against two real servers."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trio.testing import trio_test

from tests.servers import Server, moto_server, r2_server, rclone_server
from vfs.errors import NotFound, StoreError, Unavailable
from vfs.storage.access import Access, Target, connect
from vfs.storage.base import Store
from vfs.storage.guard import GuardedStore
from vfs.storage.local import LocalStore
from vfs.storage.memory import MemoryStore
from vfs.storage.r2 import S3Store
from vfs.testing import StoreContract

#: Names that lead to an object, or to a file outside, for whoever takes a key for a path.
TRICKS = (
    *("", ".", "..", "../b", "games/../b", "games/./a", "./b", "/b", "games//a", "b/"),
    *("a\0b", "bad-\udcff-utf8", "x" * 2000, "../../../../../etc/passwd"),
)
_numbers = itertools.count()
#: Without a key that is file and folder at once, which a folder cannot hold.
NAMES = st.sets(
    st.tuples(
        st.sampled_from(["", "a/", "a b/", "ab/c/"]), st.sampled_from(["x", "x.mp4", "xy", "z%41", "é"])
    ).map("".join),
    min_size=1,
    max_size=8,
)
PREFIXES = st.sampled_from(["", "a/", "a b/", "a", "ab/", "ab/c/", "x", "a/x", "none/", "ab/c/z%"])


def model(keys: Iterable[str], prefix: str, delimiter: str) -> set[str]:
    """What a listing of these keys holds, as S3 defines it."""
    cuts = ((key, key.find(delimiter, len(prefix)) if delimiter else -1) for key in keys)
    return {key if cut < 0 else key[: cut + 1] for key, cut in cuts if key.startswith(prefix)}


class _Cases(StoreContract):
    """The contract, and what is worth trying of the stores reelfs brings."""

    examples = 25
    #: What asking for a name that cannot be gives.
    absent: tuple[type[Exception], ...] = (NotFound,)
    tricks: tuple[str, ...] = TRICKS

    async def remove(self, store: Store, key: str) -> None:
        raise NotImplementedError

    @trio_test
    async def test_listings_are_those_of_the_model(self) -> None:
        """Any keys, any prefix, with a delimiter or without, in pages of any size: the same names."""

        async def one(names: set[str], prefix: str, delimiter: str, limit: int) -> None:
            async with self.store(dict.fromkeys(names, b"x")) as store:
                found: list[str] = []
                token: str | None = None
                while True:
                    page = await store.list(prefix, delimiter=delimiter, token=token, limit=limit)
                    found += [*(o.key for o in page.objects), *page.prefixes]
                    if (token := page.token) is None:
                        break
                assert sorted(found) == sorted(model(names, prefix, delimiter))

        @settings(
            max_examples=self.examples, deadline=None, database=None, suppress_health_check=list(HealthCheck)
        )
        @given(NAMES, PREFIXES, st.sampled_from(["/", ""]), st.sampled_from([1, 2, 3, 1000]))
        def agrees(names: set[str], prefix: str, delimiter: str, limit: int) -> None:
            trio.from_thread.run(one, names, prefix, delimiter, limit)

        await trio.to_thread.run_sync(agrees)

    @trio_test
    async def test_keys_are_not_paths_to_elsewhere(self) -> None:
        """A key is compared, never resolved: nothing outside is reached, nothing by another name."""
        async with self.store({"games/a": b"x", "b": b"y"}) as store:
            for key in self.tricks:
                with pytest.raises(self.absent):
                    await store.head(key)
            for prefix in ("../", "games//", "games/../", "./", "bad-\udcff", "x" * 2000):
                page = await store.list(prefix)
                assert (page.objects, page.prefixes, page.token) == ((), (), None)

    @trio_test
    async def test_a_removed_object_is_not_found(self) -> None:
        """Also through a version that was read a moment ago."""
        async with self.store({"a.mp4": bytes(range(256)) * 20, "b": b"x"}) as store:
            stored = (await store.head("a.mp4")).object
            assert len(await store.read(stored, 0, 100)) == 100
            await self.remove(store, "a.mp4")
            with pytest.raises(NotFound):
                await store.read(stored, 0, 100)
            with pytest.raises(NotFound):
                await store.head("a.mp4")
            assert [o.key for o in (await store.list()).objects] == ["b"]


class TestMemory(_Cases):
    @asynccontextmanager
    async def store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Store]:
        yield MemoryStore(objects)

    async def replace(self, store: Store, key: str, body: bytes) -> None:
        assert isinstance(store, MemoryStore)
        store.replace(key, body)

    async def remove(self, store: Store, key: str) -> None:
        assert isinstance(store, MemoryStore)
        store.remove(key)


class TestGuarded(_Cases):
    """The guard changes nothing of what a store promises."""

    @asynccontextmanager
    async def store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Store]:
        self.inner = MemoryStore(objects)
        yield GuardedStore(self.inner, writable=True)

    async def replace(self, store: Store, key: str, body: bytes) -> None:
        self.inner.replace(key, body)

    async def remove(self, store: Store, key: str) -> None:
        self.inner.remove(key)


class TestLocal(_Cases):
    pages = False  # a folder is read whole

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    @asynccontextmanager
    async def store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Store]:
        self.root = self.folder / f"root {next(_numbers)}"
        self.root.mkdir()
        store = LocalStore(self.root)
        for key, body in objects.items():
            await self.replace(store, key, body)
        yield store
        await store.aclose()

    async def replace(self, store: Store, key: str, body: bytes) -> None:
        path = self.root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        (self.folder / "incoming").write_bytes(body)
        (self.folder / "incoming").replace(path)

    async def remove(self, store: Store, key: str) -> None:
        (self.root / key).unlink()


class _Service(_Cases):
    """S3 against a server process; each store of a test is a prefix of one bucket there."""

    examples = 10
    access: Access

    @asynccontextmanager
    async def store(self, objects: Mapping[str, bytes]) -> AsyncIterator[Store]:
        prefix = f"case {next(_numbers)} ü%41"
        store = S3Store(replace(self.access, target=replace(self.access.target, prefix=prefix)))
        for key, body in objects.items():
            await self.replace(store, key, body)
        yield store

    async def replace(self, store: Store, key: str, body: bytes) -> None:
        prefix = store.url.partition("://bucket/")[2]
        self.access.client.put_object(Bucket="bucket", Key=f"{prefix}/{key}", Body=body)

    async def remove(self, store: Store, key: str) -> None:
        prefix = store.url.partition("://bucket/")[2]
        self.access.client.delete_object(Bucket="bucket", Key=f"{prefix}/{key}")


@contextlib.contextmanager
def _connected(server: Server, scheme: str = "s3") -> Iterator[Access]:
    server.fill("bucket", {})
    environ = server.environ | {"R2_ENDPOINT": server.url}
    target = Target(scheme, "bucket", "", 10.0, 8, environ)
    access = connect(target)
    yield access
    access.close()


@pytest.fixture(scope="module")
def moto() -> Iterator[Access]:
    with moto_server() as server, _connected(server) as access:
        yield access


@pytest.fixture(scope="module")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Access]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as server, _connected(server) as access:
        yield access


class TestMoto(_Service):
    gone_upload = (NotFound, Unavailable)  # an internal error

    @pytest.fixture(autouse=True)
    def _opened(self, moto: Access) -> None:
        self.access = moto


@pytest.fixture(scope="module", params=["md5", "random"])
def r2(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Access]:
    """With etags of either kind: nothing relies on what they are made of."""
    with r2_server(tmp_path_factory.mktemp("r2")) as server, _connected(server, "r2") as access:
        server.option(etags=request.param)
        yield access


class TestR2(_Service):
    @pytest.fixture(autouse=True)
    def _opened(self, r2: Access) -> None:
        self.access = r2


class TestRclone(_Service):
    #: It answers 400 for a name with a component `.` or `..`, and serves `b` when asked for `b/`.
    absent = (NotFound, StoreError)
    conditional = False
    multipart = False
    markers = False  # it makes files of them
    tricks = tuple(key for key in TRICKS if key != "b/")

    @pytest.fixture(autouse=True)
    def _opened(self, rclone: Access) -> None:
        self.access = rclone
