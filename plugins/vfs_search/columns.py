"""Rows of one kind in a file that is mapped into memory: it grows at its end and is read where it lies."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Column:
    """A file of rows of `width` values (0 = one value a row). How many of them count, somebody else knows."""

    def __init__(self, path: Path, kind: Any, width: int = 0) -> None:
        self.path, self.kind, self.width = path, np.dtype(kind), width
        self._row = self.kind.itemsize * max(width, 1)

    def append(self, rows: NDArray[Any], at: int) -> int:
        """Write rows from row `at` on (what lies behind it never counted); the row after them."""
        data = np.ascontiguousarray(rows, self.kind)
        with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b") as file:
            file.seek(at * self._row)
            file.write(data.tobytes())
            file.truncate()
            file.flush()
            os.fsync(file.fileno())
        return at + len(data)

    def mapped(self, rows: int) -> NDArray[Any]:
        """The first `rows` rows, read as they are used. Raises ValueError, OSError where there are fewer."""
        shape = (rows, self.width) if self.width else (rows,)
        if not rows:
            return np.empty(shape, self.kind)
        return np.memmap(self.path, self.kind, "r", shape=shape)
