"""Writing to a mount while the store fails: what was closed arrives, whole, and `cp` ends in time.

The whole way: cp, kernel, daemon, journal, S3 client, and a server that does as R2 and fails as it is told.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.faulty_mounts import eventually, read_uncached, timed
from tests.r2.faults import Entry, Fault
from tests.servers import R2, r2_server
from vfs.storage import upload

MountIt = Callable[..., Any]
#: Seconds an operation may take, and when it is too late for one that does not wait for the store.
DEADLINE = 3.0
LATE = DEADLINE + 2.0
#: Seconds in which everything is sent once the store is well: the uploader waits longer after each failure.
PATIENCE = 60.0
BODY = random.Random(2).randbytes(300_001)
#: Sent in parts.
FILM = upload.SINGLE + 2 * upload.LEAST_PART + 777
#: What the daemon may say while the store fails. (The last is always said: an expected line has to be there.)
TROUBLE = r"is not (sent|in the store) yet|the store does not answer|no usable answer|: mounted$"
_numbers = itertools.count()

FAULTS = {
    "storm": Fault(status=503, code="SlowDown", times=6),
    "throttled": Fault(status=429, code="TooManyRequests", times=4),
    "reset": Fault("reset", times=4),
    "reset midway": Fault("reset", times=3, after=100_000),
    "answer lost": Fault("reset", times=2, done=True),
    "hang": Fault("hang", times=2, seconds=60),
    "hang after it is done": Fault("hang", times=1, seconds=60, done=True),
    "refused": Fault(status=400, code="BadDigest", times=2),
}


def some(faults: dict[str, Fault], *names: str) -> list[Any]:
    """All of them as parameters, those that are not named for `--slow` alone."""
    return [
        pytest.param(fault, id=name, marks=() if name in names else pytest.mark.slow)
        for name, fault in faults.items()
    ]


@dataclass
class Rig:
    """A bucket of its own, mounted for writing."""

    server: R2
    bucket: str
    mount: Any
    again: Callable[[], Any]

    def __truediv__(self, name: str) -> Path:
        path: Path = self.mount.path / name
        return path

    def fault(self, fault: Fault, operation: str = "*") -> None:
        self.server.fault(replace(fault, operation=operation))

    def stored(self, key: str) -> bytes | None:
        """What the store has."""
        client = self.server.client()
        try:
            body: bytes = client.get_object(Bucket=self.bucket, Key=key)["Body"].read()
            return body
        except client.exceptions.NoSuchKey:
            return None
        finally:
            client.close()

    def keys(self, *, trash: bool = False) -> list[str]:
        """All keys of the store without what was deleted, or of that alone."""
        client = self.server.client()
        found = client.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        client.close()
        return sorted(item["Key"] for item in found if item["Key"].startswith(".reelfs-trash/") is trash)

    def listed(self) -> list[str]:
        """The names in its root, without the trash."""
        return sorted(name for name in os.listdir(self.mount.path) if name != "search")

    def store(self, key: str, body: bytes) -> None:
        """What another client does."""
        self.server.fill(self.bucket, {key: body})

    def log(self) -> list[Entry]:
        """The requests of its bucket."""
        return self.server.log(self.bucket)

    def puts(self, key: str) -> list[Entry]:
        """PUTs of a key that were answered with success."""
        return [e for e in self.log() if (e.operation, e.key, e.status) == ("PutObject", key, 200)]

    def settles(self, **wanted: bytes | None) -> None:
        """The store comes to have exactly these bytes at these keys, and the mount shows the same."""
        for key, body in wanted.items():
            eventually(lambda key=key, body=body: self.stored(key) == body, PATIENCE)  # type: ignore[misc]
            shown = read_uncached(self / key)
            assert shown == (errno.ENOENT if body is None else body)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as made:
        yield made


@pytest.fixture
def rig(server: R2, mounted: MountIt, tmp_path: Path) -> Iterator[Callable[..., Rig]]:
    """`rig(objects, **settings)`: mounted; the faults end before the mount does."""

    def make(
        objects: dict[str, bytes] | None = None,
        prepare: Callable[[Any, str], object] | None = None,
        **settings: Any,
    ) -> Rig:
        bucket = f"bucket-{next(_numbers)}"
        server.fill(bucket, objects or {})
        if prepare is not None:
            client = server.client()
            prepare(client, bucket)
            client.close()
        chosen = {
            "source": f"r2://{bucket}",
            "environ": server.environ | {"R2_ENDPOINT": server.url},
            "read_write": True,
            "deadline": DEADLINE,
            "cache_dir": str(tmp_path / bucket),
            "write.delay": 0,
            "write.free_floor": 0,
            "write.flush_timeout": 30,
            **settings,
        }

        def mount() -> Any:
            made = mounted({}, **chosen)
            made.expect_log(TROUBLE)
            return made

        return Rig(server, bucket, mount(), mount)

    with contextlib.ExitStack() as stack:
        stack.callback(server.heal)
        stack.callback(server.option, rate=False)
        yield make


def cp(source: Path, target: Path) -> float:
    """Seconds that `cp` took. Raises AssertionError when it failed, TimeoutExpired when it hangs."""
    done, took = timed(
        lambda: subprocess.run(["cp", source, target], capture_output=True, timeout=10 * LATE, check=False)
    )
    assert done.returncode == 0, done.stderr
    return took


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "file.bin"
    path.write_bytes(BODY)
    return path


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    path.write_bytes(random.Random(3).randbytes(FILM))
    return path


@pytest.mark.parametrize("fault", some(FAULTS, "storm", "reset midway", "hang after it is done", "refused"))
def test_a_copy_arrives_whatever_the_store_does(rig: Callable[..., Rig], file: Path, fault: Fault) -> None:
    """A new file and one that replaces another; `cp` does not wait for the store."""
    here = rig({"old.bin": b"what was there"})
    assert (here / "old.bin").read_bytes() == b"what was there"
    here.fault(fault, "PutObject")
    assert cp(file, here / "new.bin") < LATE
    assert cp(file, here / "old.bin") < LATE
    # While it is not sent, it is read from where it waits.
    assert (here / "new.bin").read_bytes() == BODY
    assert here.listed() == ["new.bin", "old.bin"]
    here.settles(**{"new.bin": BODY, "old.bin": BODY})
    assert here.keys() == ["new.bin", "old.bin"]
    assert here.listed() == ["new.bin", "old.bin"]


@pytest.mark.parametrize("kind", [pytest.param("status", marks=pytest.mark.slow), "hang"])
def test_a_store_that_stays_away(rig: Callable[..., Rig], file: Path, kind: str) -> None:
    """`cp` and `ls` go on; `fsync` says at the deadline that the store does not have it; nothing is lost."""
    here = rig({"old.bin": b"old"})
    assert (here / "old.bin").read_bytes() == b"old"
    assert here.listed() == ["old.bin"]
    here.fault(Fault(kind, times=-1), "*")
    assert cp(file, here / "new.bin") < LATE
    descriptor = os.open(here / "synced.bin", os.O_CREAT | os.O_WRONLY)
    try:
        os.write(descriptor, b"synced")
        failed, took = timed(lambda: _errno(lambda: os.fsync(descriptor)))
        assert failed in (errno.ETIMEDOUT, errno.EIO)
        assert DEADLINE * 0.5 < took < 2 * LATE
    finally:
        os.close(descriptor)
    assert (here / "new.bin").read_bytes() == BODY
    assert here.listed() == ["new.bin", "old.bin", "synced.bin"]
    here.server.heal()
    here.settles(**{"new.bin": BODY, "synced.bin": b"synced", "old.bin": b"old"})


def _errno(call: Callable[[], object]) -> int:
    try:
        call()
    except OSError as error:
        return error.errno or -1
    return 0


def test_what_waits_is_sent_by_the_next_mount(rig: Callable[..., Rig], file: Path) -> None:
    """The store was away until the mount was ended, and the daemon is killed while it waits once more."""
    here = rig({"old.bin": b"old"}, **{"write.flush_timeout": 0.5})
    here.fault(Fault(times=-1), "Put*")
    cp(file, here / "new.bin")
    cp(file, here / "old.bin")
    here.mount.expect_log("wait in the journal for the next mount")
    here.mount.unmount()
    assert here.stored("new.bin") is None
    second = here.again()
    here.mount = second
    assert (here / "new.bin").read_bytes() == BODY
    (here / "new.bin").write_bytes(b"written again")
    second.kill()
    subprocess.run(["fusermount3", "-u", "-z", str(second.path)], check=True)
    here.server.heal()
    here.mount = here.again()
    here.settles(**{"new.bin": b"written again", "old.bin": BODY})


def test_a_lost_race_keeps_both(rig: Callable[..., Rig], file: Path) -> None:
    """412: another client replaced it before ours arrived; and an answer was lost besides."""
    here = rig({"shared.bin": b"first"})
    assert (here / "shared.bin").read_bytes() == b"first"
    here.fault(Fault("reset", times=2), "PutObject")
    here.mount.expect_log("conflict")
    descriptor = os.open(here / "shared.bin", os.O_WRONLY | os.O_TRUNC)
    os.write(descriptor, b"ours")
    here.server.heal()
    here.store("shared.bin", b"theirs")
    here.fault(Fault("reset", times=1), "PutObject")
    os.close(descriptor)
    eventually(lambda: len(here.keys()) == 2, PATIENCE)
    keys = here.keys()
    conflict = next(key for key in keys if key != "shared.bin")
    assert conflict.startswith("shared (conflict ")
    assert conflict.endswith(".bin")
    assert (here.stored("shared.bin"), here.stored(conflict)) == (b"theirs", b"ours")
    eventually(lambda: read_uncached(here / conflict) == b"ours")
    eventually(lambda: read_uncached(here / "shared.bin") == b"theirs")


def test_quick_writes_to_one_file_are_sent_as_few(rig: Callable[..., Rig]) -> None:
    """At most one PUT a second and key: the store has nothing to refuse; the last content stays."""
    here = rig()
    here.server.option(rate=True)
    began = time.monotonic()
    for number in range(30):
        (here / "log.txt").write_bytes(b"%d" % number * 1000)
        time.sleep(0.05)
    here.settles(**{"log.txt": b"29" * 1000})
    took = time.monotonic() - began
    puts = here.puts("log.txt")
    assert 2 <= len(puts) <= took + 2
    assert all(later.at - earlier.at >= 0.95 for earlier, later in itertools.pairwise(puts))
    assert not [entry for entry in here.log() if entry.status == 429]


@pytest.mark.parametrize(
    "name",
    [
        *("refused", "answer lost"),
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("reset midway", "throttled")),
    ],
)
def test_a_film_in_parts_arrives(rig: Callable[..., Rig], film: Path, name: str) -> None:
    """A part that is refused, cut off, throttled, or lost its answer: it alone is sent again."""
    here = rig()
    here.fault(replace(FAULTS[name], skip=3), "UploadPart")
    if name == "answer lost":
        here.fault(replace(FAULTS[name], times=1), "CompleteMultipartUpload")
    assert cp(film, here / "film.mp4") < 4 * LATE
    body = film.read_bytes()
    here.settles(**{"film.mp4": body})
    log = here.log()
    assert sum(entry.operation == "CreateMultipartUpload" for entry in log) == 1
    whole = [entry for entry in log if entry.operation == "UploadPart" and entry.status == 200]
    # A refusal ends the attempt: parts that were on their way then are sent again.
    assert len(whole) <= upload.part_count(FILM) + 2 * (upload.AT_ONCE - 1)
    assert sum(entry.received for entry in log) < FILM * 2


def test_a_server_that_restarts_in_the_middle_of_a_film(rig: Callable[..., Rig], film: Path) -> None:
    """And what was written while it was away."""
    here = rig()
    here.fault(Fault("hang", times=-1, skip=4), "UploadPart")
    cp(film, here / "film.mp4")
    eventually(lambda: _parts(here) >= 4, PATIENCE)
    here.server.kill()
    took = cp(film.parent / "film.mp4", here / "away.mp4")
    assert took < 4 * LATE
    assert (here / "film.mp4").stat().st_size == FILM
    here.server.start()
    here.settles(**{"film.mp4": film.read_bytes(), "away.mp4": film.read_bytes()})


def _parts(here: Rig) -> int:
    return sum(entry.operation == "UploadPart" and entry.status == 200 for entry in here.log())


def test_a_daemon_killed_in_the_middle_of_a_film_goes_on(rig: Callable[..., Rig], film: Path) -> None:
    """With the same upload and the parts that are missing; nothing of it is seen before."""
    here = rig()
    here.fault(Fault("hang", times=-1, skip=5), "UploadPart")
    cp(film, here / "film.mp4")
    eventually(lambda: _parts(here) == 5, PATIENCE)
    assert here.stored("film.mp4") is None
    here.mount.kill()
    subprocess.run(["fusermount3", "-u", "-z", str(here.mount.path)], check=True)
    here.server.heal()
    here.mount = here.again()
    here.settles(**{"film.mp4": film.read_bytes()})
    assert here.server.count("CreateMultipartUpload", here.bucket) == 1
    # What had arrived but was not noted is sent again: the parts that were on their way at most.
    assert _parts(here) <= upload.part_count(FILM) + upload.AT_ONCE


@pytest.mark.parametrize(
    "name", [pytest.param("storm", marks=pytest.mark.slow), "answer lost", "hang after it is done"]
)
def test_names_that_change_while_the_store_fails(rig: Callable[..., Rig], name: str) -> None:
    """Moved, removed, made: the store comes to have just that."""
    here = rig({"moved.bin": b"moved", "gone.bin": b"gone", "kept.bin": b"kept", "d/in.bin": b"in"})
    assert len(here.listed()) == 4
    for operation in ("CopyObject", "DeleteObject", "PutObject"):
        here.fault(replace(FAULTS[name], times=1), operation)
    (here / "moved.bin").rename(here / "here.bin")
    (here / "gone.bin").unlink()
    (here / "made").mkdir()
    (here / "d").rename(here / "e")
    assert here.listed() == ["e", "here.bin", "kept.bin", "made"]
    assert (here / "here.bin").read_bytes() == b"moved"
    wanted = ["e/in.bin", "here.bin", "kept.bin", "made/"]
    # A folder that is moved has a marker meanwhile; that it stays when there is something in it does no harm.
    eventually(lambda: sorted({*here.keys()} - {"e/"}) == wanted, PATIENCE)
    # Only what was removed is in the trash: what was moved is still there.
    trashed = [key.rpartition("/")[2] for key in here.keys(trash=True)]
    assert trashed == ["gone.bin"]
    assert (here / "e/in.bin").read_bytes() == b"in"
    assert here.listed() == ["e", "here.bin", "kept.bin", "made"]
    assert os.listdir(here / "made") == []


def test_what_is_moved_keeps_what_is_known_of_it(rig: Callable[..., Rig]) -> None:
    """Metadata and times, of files of a folder as well, whose metadata nobody has asked for."""
    told = {"db-version": "7", "mtime": "1600000000.500000000"}

    def prepare(client: Any, bucket: str) -> None:
        for key in ("told.bin", "d/told.bin"):
            client.put_object(Bucket=bucket, Key=key, Body=b"y", Metadata=told, ContentType="video/mp4")

    here = rig({"plain.bin": b"x", "d/plain.bin": b"x"}, prepare)
    client = here.server.client()
    before = client.head_object(Bucket=here.bucket, Key="plain.bin")["LastModified"].timestamp()
    time.sleep(1.5)  # a copy made now is of another second
    (here / "d").rename(here / "e")
    for name in ("told", "plain"):
        (here / f"{name}.bin").rename(here / f"{name}2.bin")
    keys = ["e/plain.bin", "e/told.bin", "plain2.bin", "told2.bin"]
    eventually(lambda: sorted({*here.keys()} - {"e/"}) == keys, PATIENCE)
    for key in keys:
        found = client.head_object(Bucket=here.bucket, Key=key)
        if "told" in key:
            assert (found["Metadata"], found["ContentType"]) == (told, "video/mp4")
            eventually(lambda key=key: (here / key).stat().st_mtime == 1600000000.5)  # type: ignore[misc]
        else:
            assert float(found["Metadata"]["mtime"]) == pytest.approx(before, abs=1)
            assert (here / key).stat().st_mtime == pytest.approx(before, abs=1)
    client.close()


def test_parts_of_an_old_file_that_cannot_be_fetched(rig: Callable[..., Rig]) -> None:
    """A change in the middle of a large file needs the rest in the end: it waits, and arrives."""
    old = random.Random(5).randbytes(3 << 20)
    here = rig({"large.bin": old})
    here.fault(Fault(times=-1), "GetObject")
    descriptor = os.open(here / "large.bin", os.O_WRONLY)
    os.pwrite(descriptor, b"changed", 1 << 20)
    _, took = timed(lambda: os.close(descriptor))
    assert took < LATE
    time.sleep(DEADLINE)
    assert here.puts("large.bin")[1:] == []
    here.server.heal()
    new = old[: 1 << 20] + b"changed" + old[(1 << 20) + 7 :]
    here.settles(**{"large.bin": new})


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """4 MiB. Skips where nothing may be mounted."""
    folder = tmp_path / "small disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a small disk cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_said_and_harms_nothing(
    rig: Callable[..., Rig], small_disk: Path, tmp_path: Path
) -> None:
    """4 MiB to stage in and a file of 6: its writer is told, and earlier files are whole."""
    here = rig({"stored.bin": b"stored"}, **{"write.dir": str(small_disk)})
    here.fault(Fault(times=-1), "Put*")
    first = random.Random(8).randbytes(1 << 20)
    (here / "first.bin").write_bytes(first)
    (tmp_path / "large").write_bytes(bytes(6 << 20))
    done, took = timed(
        lambda: subprocess.run(
            ["cp", tmp_path / "large", here / "large.bin"], capture_output=True, timeout=60, check=False
        )
    )
    assert done.returncode != 0
    assert b"No space left on device" in done.stderr
    assert took < 2 * LATE
    assert (here / "first.bin").read_bytes() == first
    assert (here / "stored.bin").read_bytes() == b"stored"
    here.mount.expect_log("No space left on device|is full")
    (here / "large.bin").unlink()
    # There is room again, once the attempt to send what was written of it has ended.
    second = random.Random(9).randbytes(1 << 20)
    eventually(lambda: not _errno(lambda: (here / "second.bin").write_bytes(second)), PATIENCE)
    here.server.heal()
    here.settles(**{"first.bin": first, "second.bin": second, "stored.bin": b"stored"})
    assert here.listed() == here.keys() == ["first.bin", "second.bin", "stored.bin"]
    # What was sent makes room.
    third = random.Random(10).randbytes(2 << 20)
    (here / "third.bin").write_bytes(third)
    here.settles(**{"third.bin": third})


def test_many_files_through_a_storm(rig: Callable[..., Rig], tmp_path: Path) -> None:
    """A third of all requests fails in one way or another; two writers; every file arrives whole."""
    here = rig()
    for kind, status in (("status", 503), ("reset", 0), ("status", 429)):
        here.server.fault(Fault(kind, times=-1, share=0.15, status=status, operation="*"))
    here.server.fault(Fault("reset", times=-1, share=0.1, done=True, operation="Put*"))
    bodies = {f"{number}.bin": random.Random(number).randbytes(20_000 + number) for number in range(40)}

    def write(names: list[str]) -> None:
        for name in names:
            (here / name).write_bytes(bodies[name])

    names = list(bodies)
    threads = [threading.Thread(target=write, args=(names[at::2],)) for at in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    eventually(lambda: {e.key for e in here.log() if e.operation == "PutObject"} >= set(names), PATIENCE)
    here.server.heal()
    here.settles(**bodies)
    assert here.keys() == sorted(names)
