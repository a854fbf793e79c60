"""Files to and from a store without a mount: exact, resumed where they broke off, nothing overwritten."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from vfs import transfer
from vfs.errors import BadBody, ConfigError, ReelfsError, Stale, StoreError
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Store
from vfs.storage.guard import GuardedStore
from vfs.storage.memory import MemoryStore
from vfs.storage.sums import crc64nvme
from vfs.transfer import Remote, remote_of

Told = Callable[[int], object]
Put = Callable[..., StoredObject]
REMOTE = Remote("memory://", "clips/a.bin")
SIZE = 3 * upload.LEAST_PART + 999
BODY = random.Random(9).randbytes(SIZE)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    kept = MemoryStore({"other": b"x"})

    @asynccontextmanager
    async def opened(remote: Remote, *, writable: bool = False) -> AsyncIterator[Store]:
        yield GuardedStore(kept, writable=writable)

    monkeypatch.setattr(transfer, "opened", opened)
    return kept


@pytest.fixture
def put(store: MemoryStore, tmp_path: Path) -> Put:
    def run(body: bytes = BODY, *, replace: bool = False, progress: Told | None = None) -> StoredObject:
        file = tmp_path / "file.bin"
        if not file.exists() or file.read_bytes() != body:
            file.write_bytes(body)
        told = progress or (lambda count: None)

        async def main() -> StoredObject:
            return await transfer.put(
                file, REMOTE, replace=replace, progress=told, state=tmp_path / "state", single=1 << 20
            )

        return trio.run(main)

    return run


def get(target: Path, *, replace: bool = False) -> StoredObject:
    async def main() -> StoredObject:
        return await transfer.get(REMOTE, target, replace=replace, progress=lambda count: None)

    return trio.run(main)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, SIZE])
def test_what_is_put_comes_back(put: Put, tmp_path: Path, size: int) -> None:
    sent: list[int] = []
    assert put(BODY[:size], progress=sent.append).size == size
    assert sum(sent) == size
    get(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BODY[:size]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["back", "file.bin"]


def test_nothing_is_overwritten_unseen(put: Put, store: MemoryStore, tmp_path: Path) -> None:
    put(b"first")
    with pytest.raises(Stale, match="--replace"):
        put(b"second")
    put(b"second", replace=True)
    get(tmp_path / "back")
    with pytest.raises(ReelfsError, match="--replace"):
        get(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"second"
    put(b"third", replace=True)
    get(tmp_path / "back", replace=True)
    assert (tmp_path / "back").read_bytes() == b"third"


def test_an_upload_that_broke_off_goes_on_with_what_is_missing(
    put: Put, store: MemoryStore, tmp_path: Path
) -> None:
    def parts() -> list[int]:
        return [request.offset for request in store.log if request.operation == "put_part"]

    count = 0

    def cut(length: int) -> None:
        nonlocal count
        count += bool(length)
        if count == 2:
            store.fault("put_part", times=99, error=StoreError("the line is cut"))

    with pytest.raises(StoreError, match="cut"):
        put(progress=cut)
    assert [o.key for o in trio.run(store.list, "clips/").objects] == []
    arrived = set(next(iter(store._uploads.values())).parts)
    assert 2 <= len(arrived) < 4
    store.heal()
    store.log.clear()
    put()
    assert set(parts()) == {1, 2, 3, 4} - arrived
    get(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BODY
    assert list((tmp_path / "state").iterdir()) == []


def test_an_upload_that_is_gone_begins_anew(put: Put, store: MemoryStore, tmp_path: Path) -> None:
    store.fault("complete_upload", error=StoreError("no"))
    with pytest.raises(StoreError):
        put()
    store._uploads.clear()
    put()
    get(tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == BODY


def test_a_file_that_changes_while_it_is_sent_is_not_stored(
    put: Put, store: MemoryStore, tmp_path: Path
) -> None:
    def change(length: int) -> None:
        if length:
            os.utime(tmp_path / "file.bin", ns=(1, 1))

    # More parts than are read at one time: the last are read after the change, however quick all of it is.
    body = BODY + bytes(upload.AT_ONCE * upload.LEAST_PART)
    with pytest.raises(ReelfsError, match="changed while it was sent"):
        put(body, progress=change)
    assert [o.key for o in trio.run(store.list, "clips/").objects] == []


def test_a_download_goes_on_where_it_was_if_the_version_is_the_same(
    put: Put, store: MemoryStore, tmp_path: Path
) -> None:
    put()
    target, part = tmp_path / "back", tmp_path / "back.part"

    def broken(times: int) -> None:
        store.heal()
        reads = 0

        def spoil(body: bytes) -> bytes:
            nonlocal reads
            reads += 1
            if reads > times:
                raise StoreError("the line is cut")
            return body

        store.fault("read", times=99, spoil=spoil)

    broken(2)
    with pytest.raises(StoreError):
        get(target)
    assert not target.exists()
    assert BODY.startswith(part.read_bytes())
    store.heal()
    store.log.clear()
    had = part.stat().st_size
    get(target)
    assert target.read_bytes() == BODY
    assert sum(request.length for request in store.reads()) == SIZE - had
    assert not part.exists()
    # Of another version nothing is kept.
    part.write_bytes(b"of something else")
    get(target, replace=True)
    assert target.read_bytes() == BODY


def test_a_download_goes_on_after_a_power_cut_from_what_was_on_the_disk(
    put: Put, store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what was written since, a cut may leave zeros, or anything."""
    put()
    target, part = tmp_path / "back", tmp_path / "back.part"
    monkeypatch.setattr(transfer, "PIECE", 1 << 20)
    monkeypatch.setattr(transfer, "SYNC_PIECES", 3)
    reads = itertools.count()

    def spoil(body: bytes) -> bytes:
        if next(reads) >= 12:
            raise StoreError("the line is cut")
        return body

    store.fault("read", times=99, spoil=spoil)
    with pytest.raises(StoreError):
        get(target)
    synced = int(os.getxattr(part, "user.reelfs.version").split()[-2])
    assert synced >= 6 * transfer.PIECE
    with part.open("r+b") as file:
        file.seek(synced)
        file.write(bytes(2 * transfer.PIECE))
    monkeypatch.setattr(transfer, "_boot", lambda: "since another start of the machine")
    store.heal()
    store.log.clear()
    get(target)
    assert target.read_bytes() == BODY
    assert sum(request.length for request in store.reads()) == SIZE - synced


def test_names_of_objects() -> None:
    assert remote_of("s3://bucket/a/b c.mp4") == Remote("s3://bucket", "a/b c.mp4")
    assert remote_of("r2://bucket/x") == Remote("r2://bucket", "x")
    assert remote_of("/data/a b/c.mp4") == Remote("/data/a b", "c.mp4")
    assert remote_of("file:///data/c.mp4") == Remote("file:///data", "c.mp4")
    for text in ("s3://bucket", "s3://bucket/", "s3://bucket/folder/", "/data/"):
        with pytest.raises(ConfigError):
            remote_of(text)


class Summed(MemoryStore):
    """A store that keeps checksums."""

    sum = crc64nvme(BODY)

    async def checksum(self, stored: StoredObject) -> int | None:
        return self.sum


def test_what_was_fetched_has_the_checksum_of_the_store(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also where the file goes on from what an earlier try left; what is wrong is not gone on with."""
    kept = Summed({"clips/a.bin": BODY})

    @asynccontextmanager
    async def opened(remote: Remote, *, writable: bool = False) -> AsyncIterator[Store]:
        yield GuardedStore(kept, writable=writable)

    monkeypatch.setattr(transfer, "opened", opened)
    get(tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == BODY
    kept.sum += 1
    with pytest.raises(BadBody, match="do not have the checksum CRC-64/NVME"):
        get(tmp_path / "b.bin")
    assert not (tmp_path / "b.bin").exists()
    assert (tmp_path / "b.bin.part").stat().st_size == 0
    kept.sum -= 1
    get(tmp_path / "b.bin")
    assert (tmp_path / "b.bin").read_bytes() == BODY


def test_the_work_of_a_download_grows_as_its_pieces_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of the event loop are counted: a piece does not wake all that wait for their turn."""
    monkeypatch.setattr(transfer, "PIECE", 16)
    body, pieces = os.urandom(16 * 600 - 3), 600

    class Steps(trio.abc.Instrument):
        taken = 0

        def before_task_step(self, task: trio.lowlevel.Task) -> None:
            self.taken += 1

    async def main() -> None:
        store, steps = MemoryStore({"a": body}), Steps()
        stored = (await store.head("a")).object
        trio.lowlevel.add_instrument(steps)
        with (tmp_path / "a").open("a+b", buffering=0) as file:
            await transfer.download(store, stored, file, lambda count: None)
        assert steps.taken < 40 * pieces
        assert len(store.reads()) == pieces

    trio.run(main)
    assert (tmp_path / "a").read_bytes() == body
