"""Disks that forget what was not synced, for tests: see `disk`.

with lossy_disks(tmp_path) as disks:
    disk = disks.make()
    (disk.path / "a").write_bytes(b"not synced")
    found = disk.cut(Left.NOTHING)
    assert not (found.path / "a").exists()
"""

from __future__ import annotations

import contextlib
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.power.disk import Left
from vfs.mounts import mount_at

END_SECONDS = 10.0


@dataclass(frozen=True)
class LossyDisk:
    """One of them. path: where it is mounted."""

    disks: LossyDisks
    name: str

    @property
    def path(self) -> Path:
        """Its root."""
        return self.disks.folder / self.name

    def arm(self, last: int, *victims: int) -> None:
        """The power goes at the operation of this number, counted from now; so do these processes."""
        self.disks.ask("arm", self.name, last, victims)

    def cut(self, left: Left, seed: int = 0) -> LossyDisk:
        """The disk as it is found where the power goes now, or went."""
        found = LossyDisk(self.disks, self.disks.new_name())
        self.disks.ask("cut", self.name, found.name, left.value, seed)
        return found

    def off(self) -> None:
        """The power goes now: whatever is done fails."""
        self.disks.ask("off", self.name)

    def operations(self) -> list[str]:
        """What was done on it, by name: `write`, `sync`, `sync-folder`, `create`, ..."""
        return list(self.disks.ask("operations", self.name))

    def drop(self) -> None:
        """It is not needed any more."""
        self.disks.ask("drop", self.name)


class LossyDisks:
    """The process that has them. folder: where they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = itertools.count(1)
        folder.mkdir()
        command = [sys.executable, str(Path(__file__).with_name("mounted.py")), str(folder)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._answer() == "mounted"

    def make(self, *, ordered: bool = False) -> LossyDisk:
        """A new one, empty."""
        disk = LossyDisk(self, self.new_name())
        self.ask("make", disk.name, ordered)
        return disk

    def new_name(self) -> str:
        """One that no disk had yet: the kernel remembers names."""
        return f"disk{next(self._names)}"

    def ask(self, *told: object) -> Any:
        """Have the process do something."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(told).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the lossy disk has ended"
        return json.loads(line)

    def end(self) -> None:
        """Unmounted, whatever happened."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(END_SECONDS)
        self._process.stdout.close()
        if mount_at(self.folder) is not None:
            subprocess.run(["fusermount3", "-u", "-z", str(self.folder)], check=False)


@contextlib.contextmanager
def lossy_disks(folder: Path) -> Iterator[LossyDisks]:
    """Disks below a folder, which is made; they end with the block."""
    disks = LossyDisks(folder)
    try:
        yield disks
    finally:
        disks.end()


#: What is worth looking at after one cut: the least, sizes without bytes, and some orders of writing.
KINDS: Sequence[tuple[Left, int]] = ((Left.NOTHING, 0), (Left.NAMES, 0), (Left.SOME, 1), (Left.SOME, 2))
