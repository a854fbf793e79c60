"""Names that a power cut leaves where they are: an fsync of a file makes its bytes last, not its name."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def sync_folder(folder: str | os.PathLike[str]) -> None:
    """What was created, renamed and removed in a folder stays so, where its file system can promise that (and
    we may read it). Raises OSError.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # of some network file systems
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder, the owner's alone, and those above it, to stay. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for above in folder.resolve().parents:
        try:
            sync_folder(above)
        except OSError:
            return  # a read-only one, made by others


def replace(new: Path, path: Path) -> None:
    """Give a file that was synced the name of another, to stay. Raises OSError."""
    new.replace(path)
    sync_folder(path.parent)
