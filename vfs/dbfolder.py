"""The folder of a `reelfs db` session: the database, what is known of it, and a lock; it outlives a crash."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from vfs import durable, transfer
from vfs.errors import ReelfsError
from vfs.spans import StoredObject
from vfs.userdata import DATABASE


def state_folder(environ: Mapping[str, str]) -> Path:
    """`$XDG_STATE_HOME/reelfs/db`, else below `~/.local/state`: a folder for each database."""
    return transfer.state_folder(environ).with_name("db")


@dataclass(slots=True)
class Note:
    """What is known of a session. base: the version it began with, None = there was none. done: the shell has
    ended, what is left is to put it back.
    """

    url: str
    key: str
    base: dict[str, Any] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    digest: str = ""
    done: bool = False
    began: str = ""

    @property
    def replaces(self) -> StoredObject | None:
        """The version that is to be replaced."""
        return StoredObject(**self.base) if self.base else None

    def stands_on(self, stored: StoredObject, metadata: Mapping[str, str]) -> None:
        """It replaces this version."""
        about = (stored.key, stored.size, stored.version, stored.mtime_ns)
        self.base = dict(zip(("key", "size", "version", "mtime_ns"), about, strict=True))
        self.metadata = dict(metadata)


class Folder:
    """Where the files of a session are. Owner-only; held by one process (and the shell it started)."""

    def __init__(self, path: Path) -> None:
        durable.make_folder(path)
        self.path = path
        self.file = path / DATABASE
        self.out = path / "snapshot"
        self._note = path / "session.json"
        self.lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.lock)
            raise ReelfsError("another session with this database is open on this machine") from None

    def read(self) -> Note | None:
        """What was noted of a session that did not end."""
        try:
            return Note(**json.loads(self._note.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ReelfsError(f"{self._note} cannot be read: {error}") from error

    def write(self, note: Note) -> None:
        """Note it, whole; it and the database are there after a power cut, too."""
        new = self._note.with_suffix(".new")
        with new.open("w", encoding="utf-8") as file:
            json.dump(asdict(note), file)
            file.flush()
            os.fsync(file.fileno())
        durable.replace(new, self._note)

    def beside(self, kind: str) -> str | None:
        """The path of a companion of the database, if it is there."""
        path = f"{self.file}-{kind}"
        return path if os.path.exists(path) else None

    def clear(self) -> None:
        """Nothing is left of a session; the note goes last."""
        for file in (self.file, self.out):
            for ending in ("", "-wal", "-shm", "-journal"):
                Path(f"{file}{ending}").unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have it; an empty one goes."""
        if not self._note.exists():
            shutil.rmtree(self.path, ignore_errors=True)
        os.close(self.lock)


def digest_of(file: Path) -> str:
    """A digest of its bytes, to tell whether they are the same."""
    digest = xxhash.xxh3_128()
    with file.open("rb") as body:
        while chunk := body.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
