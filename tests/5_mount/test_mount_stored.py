"""The whole stack on a folder: stored files through the kernel, replaced and removed behind its back."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MountIt = Callable[..., Any]


def source_of(mount: Any) -> Path:
    return Path(mount.settings["source"])


def replace_with(path: Path, data: bytes) -> None:
    """Atomically, as an upload does."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(data)
    new.rename(path)


def compare_rest(descriptor: int, offset: int, expected: bytes) -> None:
    while data := os.pread(descriptor, 65536, offset):
        assert data == expected[offset : offset + len(data)]
        offset += len(data)


@pytest.fixture
def stored(mounted: MountIt) -> Any:
    """A mount that revalidates at every open."""
    objects = {
        "a.bin": random.Random(1).randbytes(3_000_001),
        "deep/er/b.txt": b"below\n",
        "empty": b"",
    }
    mount = mounted(objects, attr_ttl="0", negative_ttl="0", **{"plugins.block": "mp4"})
    mount.objects = objects
    return mount


def test_stored_files_are_what_was_stored(stored: Any) -> None:
    for key, data in stored.objects.items():
        assert (stored / key).read_bytes() == data
        assert (stored / key).stat().st_size == len(data)
        assert (stored / key).stat().st_mtime_ns == (source_of(stored) / key).stat().st_mtime_ns


def test_a_walk_finds_every_file_once(stored: Any) -> None:
    found = [
        os.path.relpath(os.path.join(folder, name), stored.path)
        for folder, _, names in os.walk(stored.path)
        for name in names
    ]
    assert sorted(found) == sorted(stored.objects)


def test_a_replaced_file_is_new_at_the_next_open(stored: Any) -> None:
    """C2: the kernel may keep the name for a minute; the open asks and looks again."""
    assert (stored / "a.bin").read_bytes() == stored.objects["a.bin"]
    inode = (stored / "a.bin").stat().st_ino
    replace_with(source_of(stored) / "a.bin", b"another\n")
    assert (stored / "a.bin").read_bytes() == b"another\n"
    assert (stored / "a.bin").stat().st_ino != inode


def test_an_open_file_never_shows_bytes_of_another_version(stored: Any) -> None:
    """C1: the old bytes or ESTALE."""
    old = stored.objects["a.bin"]
    with open(stored / "a.bin", "rb", buffering=0) as file:
        assert file.read(100) == old[:100]
        replace_with(source_of(stored) / "a.bin", bytes(len(old)))
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with pytest.raises(OSError) as failure:
            compare_rest(file.fileno(), 100, old)
        assert failure.value.errno == errno.ESTALE


def test_a_removed_file_cannot_be_opened(stored: Any) -> None:
    assert (stored / "a.bin").stat().st_size
    (source_of(stored) / "a.bin").unlink()
    with pytest.raises(FileNotFoundError):
        open(stored / "a.bin", "rb")  # noqa: SIM115 - it must not open
    assert (stored / "deep/er/b.txt").read_bytes() == b"below\n"
