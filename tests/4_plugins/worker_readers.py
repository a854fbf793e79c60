"""Functions that run in a worker and read: modules of tests import what a confined process may not have."""

from __future__ import annotations

import hashlib
import os
import signal

from vfs.errors import Damaged, Unavailable
from vfs.workerfile import WorkerFile


def digest(file: WorkerFile, chunk: int) -> str:
    found = hashlib.md5()
    while data := file.read(chunk):
        found.update(data)
    return found.hexdigest()


def digest_expected(file: WorkerFile) -> str:
    file.expect(file.size)
    return digest(file, 50_000)


def pieces(file: WorkerFile, wanted: list[tuple[int, int]]) -> list[bytes]:
    found = []
    for offset, length in wanted:
        file.seek(offset)
        found.append(file.read(length))
        assert file.tell() == offset + len(found[-1])
    return found


def ends(file: WorkerFile) -> tuple[int, bytes, bytes, int]:
    size = file.seek(0, os.SEEK_END)
    after = file.read(10)
    file.seek(-3, os.SEEK_CUR)
    buffer = bytearray(10)
    count = file.readinto(buffer)
    return size, after, bytes(buffer[:count]), file.seek(size + 5)


def swallowing(file: WorkerFile) -> str:
    """A decoder that takes a missing byte for the end of the stream."""
    try:
        return digest(file, 50_000)
    except Unavailable:
        return "decoded anyway"


def bad_media(file: WorkerFile) -> None:
    file.read(10)
    raise Damaged("no such box")


def dies(file: WorkerFile) -> None:
    file.read(10)
    signal.raise_signal(signal.SIGKILL)


def spins(file: WorkerFile) -> None:
    file.read(10)
    while True:
        pass


def second_of_two(file: WorkerFile, offset: int) -> bytes:
    """Asks for everything, reads a little, and turns to something else."""
    file.expect(file.size)
    file.read(100)
    file.seek(offset)
    return file.read(100)


def tells(file: WorkerFile, path: str) -> str:
    """Reads a little, says so over a pipe, reads the rest."""
    file.expect(file.size)
    found = hashlib.md5(file.read(70_001))
    with open(path, "wb") as pipe:
        pipe.write(b"1")
    found.update(file.read())
    return found.hexdigest()
