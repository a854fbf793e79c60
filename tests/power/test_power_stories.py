"""W3 when the power goes: the stories of `tests/crash`, with the journal and the staged files on a disk that
forgets what was not synced.

Each story is told once to learn what it does to the disk. Then it is told again, and the power goes at one of
these operations, or the process is killed at one of its named points and the power goes then. What a cut
leaves is tried in several ways (`Left`): a second process finds it, and sends it. In the end the store is as
after a step that was finished, no earlier one than the last whose `close` or `fsync` had returned.
"""

from __future__ import annotations

import json
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.crash import stories
from tests.crash.parent import ParentStore
from tests.crash.stories import STORIES, Teller
from tests.power.disk import Left
from tests.power.lossy import KINDS, LossyDisk, LossyDisks, lossy_disks

pytestmark = pytest.mark.fuse

#: Steps after which all that was done so far outlives the machine.
SAFE = ("store_file", "go_on", "go_over", "patch", "fsync", "send")
BELOW = Path("cache", "write", "source")


class PowerTeller(Teller):
    """Tells stories over disks that forget."""

    def __init__(self, processes: Any, store: ParentStore, disks: LossyDisks, *, ordered: bool) -> None:
        super().__init__(processes, store, disks.folder)
        self.disks, self.ordered = disks, ordered

    def operations(self, name: str) -> list[str]:
        """What a story does to the disk."""
        disk = self.disks.make(ordered=self.ordered)
        self.prepare(name)
        assert self.tell(disk.path / BELOW, self.steps(name)) == 0
        self.check(name, disk.path / BELOW, len(STORIES[name][1]))
        done = disk.operations()
        disk.drop()
        return done

    @staticmethod
    def steps(name: str) -> list[tuple[Any, ...]]:
        return [step for step, _ in STORIES[name][1]]

    def cut(
        self, name: str, kinds: Sequence[tuple[Left, int]] = KINDS, *, at: int = 0, point: int = 0
    ) -> None:
        """The power goes at an operation of the disk, or at a point of the process."""
        disk = self.disks.make(ordered=self.ordered)
        self.prepare(name)
        ended = self.tell(disk.path / BELOW, self.steps(name), point, lambda number: disk.arm(at, number))
        assert ended in (0, -signal.SIGKILL)
        self.kills[name] += 1
        after = self.store.state()
        for left, seed in kinds:
            self.store.restore(after)
            self.recover(name, disk.cut(left, seed), f"{name} {at=} {point=} {left} {seed=}")
        disk.drop()

    def recover(self, name: str, disk: LossyDisk, told: str) -> None:
        done = len(self.store.done)
        safe = [at for at, (what, *_) in enumerate(self.steps(name)[:done], 1) if what in SAFE]
        try:
            assert self.tell(disk.path / BELOW, [("send",)]) == 0
            self.check(name, disk.path / BELOW, done, max(safe, default=0))
            assert missed(disk.path / BELOW) == []
        except AssertionError as error:
            error.add_note(f"{told}: {done} steps were done")
            raise
        disk.drop()


def missed(folder: Path) -> list[str]:
    """What recovery said is not there any more."""
    with sqlite3.connect(folder / "journal.sqlite") as journal:
        told = [json.loads(text) for (text,) in journal.execute("SELECT told FROM notes")]
    journal.close()
    return [one for one in told if "not there any more" in one.get("why", "")]


@pytest.fixture(scope="module")
def processes() -> Any:
    return stories.processes()


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyDisks]:
    with lossy_disks(tmp_path_factory.mktemp("lossy") / "disks") as disks:
        yield disks


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ParentStore]:
    with ParentStore(tmp_path / "socket") as store:
        yield store


@pytest.mark.parametrize(
    "name", ["save over what is pending", "rename what is small and pending", "written over", "exchange"]
)
def test_the_power_goes_as_the_store_is_changed(
    name: str, processes: Any, store: ParentStore, disks: LossyDisks
) -> None:
    """Before a request, and after it."""
    teller = PowerTeller(processes, store, disks, ordered=False)
    teller.operations(name)
    points = list(store.points)
    for point in ("put", "sent"):
        teller.cut(name, [(Left.NOTHING, 0), (Left.SOME, 5)], point=points.index(point) + 1)


def test_the_power_goes_as_a_staged_file_goes(processes: Any, store: ParentStore, disks: LossyDisks) -> None:
    """The disk may have that, and not the row of the journal that another file has its name by now."""
    name = "save over what is pending"
    teller = PowerTeller(processes, store, disks, ordered=False)
    at = teller.operations(name).index("unlink 1") + 2
    teller.cut(name, [(Left.SOME, seed) for seed in range(6)], at=at)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("ordered", [False, True], ids=["strict", "ordered"])
@pytest.mark.parametrize("name", STORIES)
def test_the_power_goes_anywhere(
    name: str, ordered: bool, processes: Any, store: ParentStore, disks: LossyDisks
) -> None:
    """Before every operation of the disk. (What is durable changes by a sync alone.)"""
    teller = PowerTeller(processes, store, disks, ordered=ordered)
    for at, operation in enumerate(teller.operations(name), 1):
        teller.cut(name, KINDS if "sync" in operation else [(Left.SOME, at)], at=at)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", STORIES)
def test_the_power_goes_at_each_named_point(
    name: str, processes: Any, store: ParentStore, disks: LossyDisks
) -> None:
    teller = PowerTeller(processes, store, disks, ordered=False)
    teller.operations(name)
    for point in range(1, len(store.points) + 1):
        teller.cut(name, point=point)
