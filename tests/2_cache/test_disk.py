"""The disk cache: right bytes or none, within its limit, over restarts, kills and failing disks."""

from __future__ import annotations

import errno
import logging
import os
import random
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from vfs.cache import diskfile
from vfs.cache.budget import Budget
from vfs.cache.disk import DiskCache
from vfs.errors import ConfigError
from vfs.pytest_plugin import ExpectedLogs
from vfs.spans import StoredObject

KIB = 1024
LIMIT = 10_000_000
A = DiskCache.identity("s3://bucket", StoredObject("a", 10**6, "v1"))
B = DiskCache.identity("s3://bucket", StoredObject("b", 10**6, "v1"))


def body(length: int, seed: int = 0) -> memoryview:
    return memoryview(random.Random(seed).randbytes(length))


def using(
    directory: Path, work: Callable[[DiskCache], Any], *, limit: int = LIMIT, keep_free: int = 0, **more: int
) -> None:
    """`await work(cache)` while the cache's writer runs."""

    async def main() -> None:
        async with DiskCache.open(directory, limit, keep_free=keep_free) as cache:
            for name, value in more.items():
                setattr(cache, f"_{name}", value)
            async with trio.open_nursery() as nursery:
                await nursery.start(cache.run)
                await work(cache)
                nursery.cancel_scope.cancel()

    trio.run(main)


async def keep(cache: DiskCache, identity: str, start: int, data: memoryview) -> None:
    assert cache.offer(identity, start, data)
    await cache.drain()


def files(directory: Path) -> list[Path]:
    return sorted(p for p in directory.rglob("*-*") if p.is_file())


def test_what_was_written_is_read_whole_and_in_parts(tmp_path: Path) -> None:
    async def work(cache: DiskCache) -> None:
        data = body(300_000)
        await keep(cache, A, 1000, data)
        assert cache.cover(A, 0, 2_000_000) == [(1000, 301_000)]
        assert await cache.read(A, 1000, 301_000) == data
        for start, end in ((1000, 1001), (66_535, 66_537), (300_999, 301_000), (70_000, 250_000)):
            part = await cache.read(A, start, end)
            assert part == data[start - 1000 : end - 1000]
            assert part is not None
            assert len(part) == memoryview(part.obj).nbytes, "no larger buffer is kept alive by a small view"
        assert await cache.read(A, 999, 1001) is None
        assert await cache.read(A, 300_999, 301_001) is None
        assert cache.cover(B, 0, 10) == []
        assert await cache.read(B, 0, 10) is None

    using(tmp_path, work)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 900), st.integers(1, 300), st.sampled_from([A, B])), max_size=12),
    st.booleans(),
)
def test_overlapping_bodies_cover_what_they_should(
    tmp_path_factory: pytest.TempPathFactory, script: list[tuple[int, int, str]], restart: bool
) -> None:
    directory = tmp_path_factory.mktemp("cache")
    whole = {identity: bytes(body(1300, seed)) for seed, identity in enumerate((A, B))}
    there: dict[str, set[int]] = {A: set(), B: set()}

    async def write(cache: DiskCache) -> None:
        for start, length, identity in script:
            await keep(cache, identity, start, memoryview(whole[identity])[start : start + length])
            there[identity].update(range(start, start + length))
        if not restart:
            await check(cache)

    async def check(cache: DiskCache) -> None:
        for identity, cells in there.items():
            await cache.settle(identity)
            found = cache.cover(identity, 0, 2000)
            assert {n for start, end in found for n in range(start, end)} == cells
            for start, end in found:
                assert await cache.read(identity, start, end) == memoryview(whole[identity])[start:end]
        assert cache.used == sum(
            diskfile.footprint(int(p.name.partition("-")[2], 16)) for p in files(directory)
        )

    using(directory, write)
    if restart:
        using(directory, check)


def test_bytes_survive_a_restart_and_answer_before_the_scan_has_ended(tmp_path: Path) -> None:
    data = body(100_000)
    using(tmp_path, lambda cache: keep(cache, A, 0, data))
    cache = DiskCache(tmp_path, LIMIT)

    async def main() -> None:
        assert cache.cover(A, 0, 10) == [], "nothing is looked at before it is asked for"
        await cache.settle(A)
        assert cache.cover(A, 0, 10) == [(0, 10)]
        assert await cache.read(A, 5, 10) == data[5:10]
        assert not cache.scanned

    try:
        trio.run(main)
    finally:
        cache.close()


def test_a_plan_may_look_without_waiting(tmp_path: Path) -> None:
    using(tmp_path, lambda cache: keep(cache, A, 0, body(100)))
    cache = DiskCache(tmp_path, LIMIT)
    cache.settle_now(A)
    assert cache.cover(A, 0, 1000) == [(0, 100)]
    cache.close()


@pytest.mark.parametrize("place", [0, 7, 8, 30, 41, 50, 56, 60, 5000, 70_000, -1])
def test_a_flipped_byte_is_a_miss_and_the_file_goes(
    tmp_path: Path, place: int, caplog: pytest.LogCaptureFixture, expected_logs: ExpectedLogs
) -> None:
    expected_logs("damaged file was removed")

    async def work(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(100_000))
        (path,) = files(tmp_path)
        damaged = bytearray(path.read_bytes())
        damaged[place] ^= 0x10
        path.write_bytes(damaged)
        assert await cache.read(A, 0, 100_000) is None
        assert files(tmp_path) == []
        assert cache.cover(A, 0, 100_000) == []
        assert cache.used == 0
        assert cache.counters.bad == 1

    using(tmp_path, work)
    assert [r.levelname for r in caplog.records] == ["WARNING"]


def test_a_flipped_byte_elsewhere_does_not_spoil_a_part_that_is_whole(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs("damaged file was removed")

    async def work(cache: DiskCache) -> None:
        data = body(200_000)
        await keep(cache, A, 0, data)
        (path,) = files(tmp_path)
        damaged = bytearray(path.read_bytes())
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        assert await cache.read(A, 0, 60_000) == data[:60_000]
        assert await cache.read(A, 150_000, 199_000) is None

    using(tmp_path, work)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def extend(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"x")


def empty(path: Path) -> None:
    os.truncate(path, 0)


def foreign(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def link(path: Path) -> None:
    target = path.with_name("elsewhere")
    path.rename(target)
    path.symlink_to(target)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("harm", [truncate, extend, empty, foreign, link, pipe])
@pytest.mark.parametrize("restart", [False, True])
def test_a_file_that_is_not_ours_any_more_is_a_miss_and_goes(
    tmp_path: Path, harm: Callable[[Path], None], restart: bool, expected_logs: ExpectedLogs
) -> None:
    if not restart:
        expected_logs("damaged file was removed|cannot be read")
    elif harm is foreign:
        expected_logs("damaged file was removed")

    async def write(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(1000))
        (path,) = files(tmp_path)
        harm(path)
        if not restart:
            await check(cache)

    async def check(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        for span in cache.cover(A, 0, 1000):
            assert await cache.read(A, *span) is None
        assert cache.cover(A, 0, 1000) == []
        assert not any(p.name == "0-3e8" for p in tmp_path.rglob("*"))

    using(tmp_path, write)
    if restart:
        using(tmp_path, check)


def test_a_file_of_another_object_or_place_is_never_served(
    tmp_path: Path, expected_logs: ExpectedLogs
) -> None:
    expected_logs("damaged file was removed")

    async def work(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(1000, 1))
        await keep(cache, A, 5000, body(1000, 2))
        await keep(cache, B, 0, body(1000, 3))
        a, b = (diskfile.path_of(tmp_path / "blocks-1", name, 0, 1000) for name in (A, B))
        os.replace(b, a)
        assert await cache.read(A, 0, 1000) is None
        os.replace(a.with_name("1388-3e8"), b)
        assert await cache.read(B, 0, 1000) is None

    using(tmp_path, work)


async def wait_for_scan(cache: DiskCache) -> None:
    while not cache.scanned:
        await trio.sleep(0.001)


def test_a_removed_cache_is_a_miss(tmp_path: Path) -> None:
    async def work(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(1000))
        files(tmp_path)[0].unlink()
        assert await cache.read(A, 0, 1000) is None
        assert cache.cover(A, 0, 1000) == []
        await keep(cache, A, 0, body(1000))
        assert await cache.read(A, 0, 1000) == body(1000)

    using(tmp_path, work)


def disk_usage(directory: Path) -> int:
    return sum(p.lstat().st_blocks * 512 for p in directory.rglob("*"))


def test_the_limit_holds_on_disk_and_the_least_recently_used_goes(tmp_path: Path) -> None:
    async def work(cache: DiskCache) -> None:
        for number in range(60):
            name = DiskCache.identity("x", StoredObject(str(number), 1, "v"))
            await keep(cache, name, 0, body(20_000))
            assert cache.used <= 300_000
            assert disk_usage(tmp_path) <= 300_000
            if number >= 1:
                assert await cache.read(names[0], 0, 20_000) is not None, "used again and again"
            names.append(name)
        assert cache.counters.evicted > 40
        assert cache.cover(names[1], 0, 10) == []
        assert cache.cover(names[-1], 0, 10) == [(0, 10)]

    names: list[str] = []
    using(tmp_path, work, limit=300_000)

    async def shrunk(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        assert 0 < cache.used <= 100_000
        assert disk_usage(tmp_path) <= 100_000

    using(tmp_path, shrunk, limit=100_000)


def test_the_number_of_files_is_bounded_too(tmp_path: Path) -> None:
    async def work(cache: DiskCache) -> None:
        for number in range(20):
            await keep(cache, A, number * 100, body(10))
        assert len(cache) == len(files(tmp_path)) == 5

    using(tmp_path, work, max_files=5)


def test_what_is_larger_than_the_limit_is_not_written(tmp_path: Path) -> None:
    async def work(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(100_000))
        await keep(cache, B, 0, body(1_000_000))
        assert cache.cover(A, 0, 10) == [(0, 10)]
        assert cache.cover(B, 0, 10) == []

    using(tmp_path, work, limit=500_000)


def test_only_the_owner_can_read_it(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        using(tmp_path / "new", lambda cache: keep(cache, A, 0, body(10)))
    finally:
        os.umask(previous)
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_an_existing_directory_keeps_its_mode_and_strangers_files(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "notes.txt").write_text("mine")
    using(tmp_path, lambda cache: keep(cache, A, 0, body(10)))
    inside = tmp_path / "blocks-1" / A / "notes.txt"
    inside.write_text("mine too")

    async def work(cache: DiskCache) -> None:
        await wait_for_scan(cache)

    using(tmp_path, work)
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
    assert (tmp_path / "notes.txt").exists()
    assert inside.exists()


def test_two_users_of_one_directory_are_refused(tmp_path: Path) -> None:
    first = DiskCache(tmp_path, LIMIT)
    with pytest.raises(ConfigError, match=f"in use by another mount .process {os.getpid()}"):
        DiskCache(tmp_path, LIMIT)
    first.close()
    first.close()
    DiskCache(tmp_path, LIMIT).close()


def test_a_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"file.*[Nn]ot a directory|exists"):
        DiskCache(tmp_path / "file" / "cache", LIMIT)
    (tmp_path / "blocks-1").symlink_to(tmp_path)
    with pytest.raises(ConfigError):
        DiskCache(tmp_path, LIMIT)


def test_identities_differ_by_everything_that_matters() -> None:
    one = StoredObject("k", 5, "v", 1)
    others = [StoredObject("K", 5, "v"), StoredObject("k", 6, "v"), StoredObject("k", 5, "w")]
    assert len({DiskCache.identity("u", o) for o in [one, *others]} | {DiskCache.identity("w", one)}) == 5
    assert DiskCache.identity("u", one) == DiskCache.identity("u", StoredObject("k", 5, "v", 2))
    DiskCache.identity("u", StoredObject("\udcff", 5, "v"))


def test_the_queue_is_bounded_and_never_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        cache.budget = Budget(10_000)
        taken = [cache.offer(A, n * 1000, body(1000)) for n in range(10)]
        assert taken == [True] * 4 + [False] * 6
        assert cache.budget.pinned == 4000
        assert cache.counters.dropped == 6
        await cache.drain()
        assert cache.budget.pinned == 0
        assert len(cache) == 4

    using(tmp_path, work, queue_bytes=4500)


def test_without_its_writer_nothing_is_queued_and_what_was_is_given_back(tmp_path: Path) -> None:
    async def main() -> None:
        budget = Budget(10_000)
        cache = DiskCache(tmp_path, LIMIT, budget=budget)
        assert not cache.offer(A, 0, body(10))
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            assert cache.offer(A, 0, body(10))
            assert cache.offer(A, 50, body(10))
            nursery.cancel_scope.cancel()
        assert budget.pinned == 0
        await cache.drain()
        cache.close()

    trio.run(main)


def refuse(code: int) -> Callable[..., Any]:
    def fail(*_: object, **__: object) -> Any:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EACCES, errno.EROFS])
def test_a_disk_that_refuses_writes_is_said_once_left_alone_and_tried_again(
    tmp_path: Path,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs(os.strerror(code))

    async def main() -> None:
        async with DiskCache.open(tmp_path, LIMIT, keep_free=0) as cache, trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            with monkeypatch.context() as patch:
                patch.setattr(diskfile, "write", refuse(code))
                await keep(cache, A, 0, body(100))
                assert not cache.offer(A, 500, body(100)), "left alone"
                await trio.sleep(61)
                await keep(cache, A, 0, body(100))
                assert cache.used == 0
            await trio.sleep(61)
            await keep(cache, A, 0, body(100))
            assert await cache.read(A, 0, 100) == body(100)
            nursery.cancel_scope.cancel()

    caplog.set_level(logging.INFO)
    trio.run(main, clock=MockClock(autojump_threshold=0.2))
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]
    assert os.strerror(code) in caplog.records[0].getMessage()


@pytest.mark.parametrize(("code", "stays"), [(errno.EIO, False), (errno.EACCES, True), (errno.EMFILE, True)])
def test_a_disk_that_cannot_be_read_is_a_miss(
    tmp_path: Path,
    code: int,
    stays: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    expected_logs: ExpectedLogs,
) -> None:
    expected_logs("reading through")

    async def work(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(100))
        with monkeypatch.context() as patch:
            patch.setattr(diskfile, "read", refuse(code))
            assert await cache.read(A, 0, 100) is None
            assert await cache.read(A, 0, 100) is None
        assert (await cache.read(A, 0, 100) is not None) == stays

    using(tmp_path, work)
    assert sum("reading through" in r.getMessage() for r in caplog.records) == 1


def test_space_that_others_need_is_left_to_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, expected_logs: ExpectedLogs
) -> None:
    expected_logs("No space left")

    async def work(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(100))
        assert len(cache) == 0

    using(tmp_path, work, keep_free=1 << 60)
    assert "No space left" in caplog.text


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 1 MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "reelfs-test", str(directory)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs is not permitted here")
    yield directory
    subprocess.run(["umount", str(directory)], check=True)


def test_a_full_disk_costs_nothing_but_the_cache(
    small_disk: Path, caplog: pytest.LogCaptureFixture, expected_logs: ExpectedLogs
) -> None:
    expected_logs("No space left")

    async def work(cache: DiskCache) -> None:
        for number in range(10):
            cache.offer(A, number * 200_000, body(150_000, number))
            await cache.drain()
        found = cache.cover(A, 0, 10**7)
        assert 3 <= len(found) < 10
        for start, end in found:
            assert await cache.read(A, start, end) == body(150_000, start // 200_000)
        assert not list(small_disk.rglob(".new")), "no torn file is left"

    using(small_disk, work)
    assert [r.getMessage().count("No space left") for r in caplog.records] == [1]


WRITER = """
    import random, sys, trio
    from vfs.cache.disk import DiskCache
    async def main():
        cache = DiskCache(sys.argv[1], 3_000_000, keep_free=0)
        async with trio.open_nursery() as nursery:
            await nursery.start(cache.run)
            for number in range(10**9):
                start = number % 40 * 100_000
                body = random.Random(start).randbytes(100_000)
                cache.offer("%032x" % (number % 3), start, memoryview(body))
                await cache.drain()
                if number == 5:
                    print("writing", flush=True)
    trio.run(main)
"""


def test_after_a_kill_in_the_middle_of_writes_only_whole_bytes_are_served(tmp_path: Path) -> None:
    async def check(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        served = 0
        for number in range(3):
            identity = f"{number:032x}"
            for start, end in cache.cover(identity, 0, 10**8):
                data = await cache.read(identity, start, end)
                assert data == body(100_000, start)
                served += 1
        assert served > 3
        assert cache.counters.bad == 0
        assert not list(tmp_path.rglob(".new"))
        assert disk_usage(tmp_path) <= 3_000_000

    for round_ in range(4):
        command = [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"writing\n"
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.05 + 0.017 * round_)
            process.send_signal(signal.SIGKILL)
        using(tmp_path, check, limit=3_000_000)


def test_the_scan_removes_what_a_crash_left_and_keeps_the_order_of_use(tmp_path: Path) -> None:
    async def write(cache: DiskCache) -> None:
        for number in range(4):
            await keep(cache, A, number * 1000, body(100))

    using(tmp_path, write)
    root = tmp_path / "blocks-1"
    for number, path in enumerate([root / A / f"{n * 1000:x}-64" for n in (2, 0, 3, 1)]):
        os.utime(path, (number, number))
    (root / A / ".new").write_bytes(b"torn")
    (root / B).mkdir()

    async def check(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        assert cache.cover(A, 0, 10_000) == [(1000, 1100), (3000, 3100)]
        assert not (root / B).exists()
        assert not (root / A / ".new").exists()

    using(tmp_path, check, limit=2 * diskfile.footprint(100) + 16 * KIB)


def test_of_two_files_with_the_same_bytes_one_is_removed_at_start(tmp_path: Path) -> None:
    root, handle = diskfile.lock(tmp_path)
    diskfile.write(root, A, 0, body(100))
    diskfile.write(root, A, 50, body(100))
    os.close(handle)

    async def check(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        assert len(cache) == len(files(tmp_path)) == 1

    using(tmp_path, check)


def test_reads_record_their_time_so_that_the_order_survives(tmp_path: Path) -> None:
    async def write(cache: DiskCache) -> None:
        await keep(cache, A, 0, body(100))

    using(tmp_path, write)
    (path,) = files(tmp_path)
    os.utime(path, (1, 1))

    async def read(cache: DiskCache) -> None:
        await wait_for_scan(cache)
        assert await cache.read(A, 0, 10) is not None

    using(tmp_path, read)
    assert path.stat().st_mtime > 1_000_000
