"""Credentials in a file of their own: lines `NAME=VALUE`, as systemd's EnvironmentFile= has them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from vfs.errors import ConfigError


def environment(file: Path | None) -> Mapping[str, str]:
    """The variables of the process, and before them those of a file. Raises ConfigError."""
    if file is not None:
        read(file)
    return Environment(file)


class Environment(Mapping[str, str]):
    """`os.environ` and what was withdrawn from it, below what a file says (read each time)."""

    def __init__(self, file: Path | None) -> None:
        self._file = file

    def _now(self) -> dict[str, str]:
        return {**os.environ, **_withdrawn, **(read(self._file) if self._file else {})}

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


#: Variables that are worth stealing.
SECRETS = (
    "R2_QUEUE_TOKEN",
    "R2_SECRET_ACCESS_KEY",
    "R2_SESSION_TOKEN",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
)
_withdrawn: dict[str, str] = {}


def withdraw() -> None:
    """Take the secrets of stores out of this process's environment, which decoding processes inherit."""
    for name in SECRETS:
        if (value := os.environ.pop(name, None)) is not None:
            _withdrawn[name] = value
