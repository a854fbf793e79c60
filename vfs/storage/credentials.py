"""Credentials in a file of their own: lines `NAME=VALUE`, as systemd's EnvironmentFile= has them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from vfs.errors import ConfigError


def environment(file: Path | None) -> Mapping[str, str]:
    """The variables of the process, and before them those of a file. Raises ConfigError."""
    if file is None:
        return os.environ
    read(file)
    return FileEnvironment(file)


class FileEnvironment(Mapping[str, str]):
    """`os.environ` below what a file says, which is read whenever it is asked: it may change."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def _now(self) -> dict[str, str]:
        return {**os.environ, **read(self._file)}

    def __getitem__(self, name: str) -> str:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())


def read(file: Path) -> dict[str, str]:
    """The variables of a file. Raises ConfigError where others may read it, or a line is none; no value is
    shown.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            mode = os.fstat(opened.fileno()).st_mode
            lines = opened.read().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"credentials: {file}: {getattr(error, 'strerror', None) or 'not text'}") from None
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError(f"credentials: others may read {file}: `chmod 600 {file}`")
    found = {}
    for number, line in enumerate(lines, 1):
        text = line.strip().removeprefix("export ")
        if not text or text.startswith(("#", ";")):
            continue
        name, equals, value = text.partition("=")
        if not equals or not name.strip().isidentifier():
            raise ConfigError(f"credentials: {file}: line {number} is not NAME=VALUE")
        value = value.strip()
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[name.strip()] = value
    return found
