"""W3 when the power goes, the whole way: programs, kernel, daemon, and a real server; the daemon keeps what
is written, its journal and its cache on a disk that forgets what was not synced.

Files are written in all the ways programs do. The power goes at an operation of the disk, or the daemon is
killed at a named point and the power goes then; it is mounted again on what the disk has, and all is as after
a step that was done, no earlier one than the last whose `close`, `fsync` or commit had returned.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.power.disk import Left
from tests.power.lossy import KINDS, LossyDisks, lossy_disks
from tests.servers import R2, r2_server
from tests.writes import WrittenMount

pytestmark = pytest.mark.fuse

State = dict[str, bytes]
SMALL, LARGE, LARGER = (random.Random(n).randbytes(size) for n, size in enumerate((3000, 150_001, 300_003)))
STORED = random.Random(9).randbytes(200_000)
_numbers = itertools.count()
EXPECTED = [r"kept as .* \(recovered ", r"wait in the journal", r"Input/output error", "disk cache"]


#: So many operations of the disk are made, and at which of them the power goes.
OPERATIONS = range(0, 800, 15)
POINTS = ["before-sync", "after-sync", "before-commit", "in-commit", "after-commit"]
POINTS += ["put", "sent", "settled", "delete", "deleted"]


def some(values: Iterable[int], *daily: int) -> list[Any]:
    """As parameters; all but some with `--slow` alone."""
    return [pytest.param(one, marks=() if one in daily else pytest.mark.slow) for one in values]


@dataclass(frozen=True)
class Step:
    """do: what is done in the folder; after: what there is then. safe: when it has returned, it and all
    before outlive the machine.
    """

    do: Callable[[Path], object]
    after: Callable[[State], State]
    safe: bool = True


def write(name: str, body: bytes, *, fsync: bool = False) -> Step:
    """A file, new or over an old one, as cp does."""

    def do(root: Path) -> None:
        with (root / name).open("wb", buffering=0) as file:
            for at in range(0, len(body), 100_000):
                file.write(body[at : at + 100_000])
            if fsync:
                os.fsync(file.fileno())

    return Step(do, lambda state: state | {name: body})


def patch(name: str, offset: int, body: bytes) -> Step:
    """Some bytes of a file."""

    def do(root: Path) -> None:
        with (root / name).open("r+b", buffering=0) as file:
            file.seek(offset)
            file.write(body)

    def after(state: State) -> State:
        old = state[name].ljust(offset, b"\0")
        return state | {name: old[:offset] + body + old[offset + len(body) :]}

    return Step(do, after)


def truncate(name: str, size: int) -> Step:
    """Cut a file off."""

    def do(root: Path) -> None:
        with (root / name).open("r+b") as file:
            file.truncate(size)

    return Step(do, lambda state: state | {name: state[name][:size].ljust(size, b"\0")})


def rename(old: str, new: str) -> Step:
    """Of a file or folder."""

    def after(state: State) -> State:
        moved = {new + k[len(old) :]: b for k, b in state.items() if k == old or k.startswith(old + "/")}
        kept = {key: body for key, body in state.items() if key != old and not key.startswith(old + "/")}
        return kept | moved

    return Step(lambda root: os.rename(root / old, root / new), after, safe=False)


def unlink(name: str) -> Step:
    """Remove a file."""

    def after(state: State) -> State:
        return {key: body for key, body in state.items() if key != name}

    return Step(lambda root: os.unlink(root / name), after, safe=False)


def sync_folder() -> Step:
    """What was moved and removed stays so."""

    def do(root: Path) -> None:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    return Step(do, dict)


def commit(name: str, mode: str, value: int) -> Step:
    """A row more in a database. What is compared of one are its rows."""

    def do(root: Path) -> None:
        connection = sqlite3.connect(root / name, isolation_level=None)
        with contextlib.closing(connection):
            connection.execute(f"PRAGMA journal_mode={mode}")
            connection.execute("PRAGMA synchronous=EXTRA")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER, body BLOB)")
            connection.execute("INSERT INTO t VALUES (?, zeroblob(9000))", (value,))
            connection.execute("COMMIT")

    return Step(do, lambda state: state | {name: state.get(name, b"") + b"%d " % value})


STEPS: list[Step] = [
    write("small", SMALL),
    write("large", LARGE),
    patch("large", 140_000, SMALL * 20),
    patch("stored", 70_000, SMALL),
    Step(lambda root: (root / "d").mkdir(), dict, safe=False),
    write("d/in", LARGE),
    *(write(f"d/{number}", bytes([number]) * number * 500) for number in range(6)),
    rename("d", "e"),
    write("large.tmp", LARGER),
    rename("large.tmp", "large"),
    write("small.tmp", LARGER[:4000]),
    rename("small.tmp", "small"),
    truncate("large", 70_001),
    write("fsynced", LARGE[::-1], fsync=True),
    unlink("e/3"),
    sync_folder(),
    commit("rows.db", "delete", 1),
    commit("rows.db", "delete", 2),
    commit("log.db", "wal", 1),
    rename("e/in", "stored"),
    commit("log.db", "wal", 2),
    unlink("large"),
    write("large", SMALL[:5]),
    rename("fsynced", "e/5"),
    commit("rows.db", "delete", 3),
]


def states() -> list[State]:
    """What there is before the first step, and after each."""
    found: list[State] = [{"stored": STORED}]
    for step in STEPS:
        found.append(step.after(found[-1]))
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as server:
        yield server


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyDisks]:
    with lossy_disks(tmp_path_factory.mktemp("lossy") / "disks") as disks:
        yield disks


@dataclass
class Machine:
    """A machine whose power goes."""

    folder: Path
    server: R2
    disks: LossyDisks
    left: tuple[Left, int] = (Left.NOTHING, 0)

    def __post_init__(self) -> None:
        self.bucket = f"b{next(_numbers)}"
        self.server.fill(self.bucket, {"stored": STORED})
        self.disk = self.disks.make()
        self.mount = WrittenMount(
            self.folder / self.bucket, f"s3://{self.bucket}", self.server.environ, ("write.delay=0s",)
        )
        self.mount.expect_log(*EXPECTED)
        self.mount.folder.mkdir()
        self.mount.keeps = self.disk.path
        self.done = 0

    def write(self) -> None:
        """Step after step, until the power goes."""
        for step in STEPS:
            try:
                step.do(self.mount.path)
            except (OSError, sqlite3.Error):
                return
            self.done += 1

    def cut(self) -> None:
        """The power goes, now if it did not yet; the machine is there again."""
        assert self.mount.process is not None
        self.mount.process.kill()
        self.mount.died()
        self.disk.off()
        self.disk = self.disk.cut(*self.left)
        self.mount.keeps, self.mount.environ = self.disk.path, self.server.environ
        is_stored = self.stored() in self.legal()
        self.mount.start()
        said = "the journal of an earlier mount has " in self.mount.log.read_text()
        assert said or is_stored, "what waits is said"

    def legal(self) -> list[State]:
        """What there may be: as after the last step that was safe when it returned, or a later one."""
        safe = [at for at, step in enumerate(STEPS[: self.done], 1) if step.safe]
        return states()[max(safe, default=0) : self.done + 2]

    def check(self) -> None:
        """All is as after a step that was done, in the mount and then in the bucket."""
        legal = self.legal()
        told = f"{self.left}: {self.done} steps were done"
        seen = self.seen(self.mount.path, self.mount.folder)
        assert seen in legal, f"{told}; {unlike(seen, legal)}"
        assert "not there any more" not in self.mount.log.read_text()
        self.mount.unmount()
        stored = self.stored()
        assert stored == seen, f"{told}; in the bucket {unlike(stored, [seen])}"
        self.mount.check_log()
        self.disk.drop()

    def seen(self, root: Path, scratch: Path) -> State:
        """What there is below a folder."""
        found = {}
        for path in (path for path in root.rglob("*") if path.is_file()):
            name = str(path.relative_to(root))
            if re.search(r" \(recovered ", name) or re.search(r"\.db-(wal|shm|journal)$", name):
                continue
            found[name] = rows(path) if name.endswith(".db") else path.read_bytes()
        return {name: body for name, body in found.items() if body or not name.endswith(".db")}

    def stored(self) -> State:
        """What the bucket has."""
        client = self.server.client()
        copy = self.folder / f"{self.bucket}-stored"
        shutil.rmtree(copy, ignore_errors=True)
        try:
            for told in client.list_objects_v2(Bucket=self.bucket).get("Contents", []):
                key = told["Key"]
                if not key.endswith("/") and not key.startswith(".reelfs-trash/"):
                    (copy / key).parent.mkdir(parents=True, exist_ok=True)
                    client.download_file(self.bucket, key, str(copy / key))
        finally:
            client.close()
        return self.seen(copy, copy)


def rows(path: Path) -> bytes:
    """What is in a database, looked at by SQLite; nothing in one that was never committed to."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name='t'").fetchall():
            return b""
        return b"".join(b"%d " % n for (n,) in connection.execute("SELECT n FROM t ORDER BY rowid"))


def unlike(seen: State, legal: list[State]) -> str:
    """Where it differs from what is most like it."""

    def different(state: State) -> list[str]:
        return [name for name in {*state, *seen} if state.get(name) != seen.get(name)]

    nearest = min(legal, key=lambda state: len(different(state)))
    return ", ".join(
        f"{name}: {sizes(seen.get(name))} where {sizes(nearest.get(name))}" for name in different(nearest)
    )


def sizes(body: bytes | None) -> str:
    return "nothing" if body is None else f"{len(body)} bytes {body[:12]!r}"


@pytest.fixture
def machine(tmp_path: Path, server: R2, disks: LossyDisks) -> Iterator[Machine]:
    machine = Machine(tmp_path, server, disks)
    try:
        yield machine
    finally:
        machine.mount.finish()


@pytest.mark.slow
def test_what_is_done_when_nothing_happens(machine: Machine) -> None:
    machine.mount.start()
    machine.write()
    assert machine.done == len(STEPS)
    assert len(machine.disk.operations()) > OPERATIONS.stop * 0.8  # some more or fewer, as sends overlap
    machine.check()


@pytest.mark.parametrize("at", some(OPERATIONS, 300))
def test_the_power_goes(at: int, machine: Machine) -> None:
    """At an operation of the disk."""
    machine.left = KINDS[at // OPERATIONS.step % len(KINDS)]
    machine.mount.start()
    assert machine.mount.process is not None
    machine.disk.arm(at, machine.mount.process.pid)
    machine.write()
    machine.cut()
    machine.check()


@pytest.mark.slow
@pytest.mark.parametrize("left", KINDS)
@pytest.mark.parametrize("count", [1, 8, 25])
@pytest.mark.parametrize("point", POINTS)
def test_the_power_goes_at_a_named_point(
    point: str, count: int, left: tuple[Left, int], machine: Machine
) -> None:
    machine.left = left
    machine.mount.environ = {**machine.server.environ, "VFS_FAULT_POINT": f"{point}:{count}"}
    with contextlib.suppress(AssertionError):  # it came there as it started: nothing is written
        machine.mount.start()
        machine.write()
    machine.cut()
    machine.check()
