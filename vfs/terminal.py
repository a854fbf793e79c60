"""What a command prints, and what its errors become: one line on stderr and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from vfs.errors import ConfigError, ReelfsError

T = TypeVar("T")

#: What was to be written is kept beside what another client wrote.
EXIT_CONFLICT = 3
#: 128 + the number of the signal, as a shell says it of a program that died of one.
EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141


class NobodyReads(Exception):
    """stdout is a pipe that was closed (`| head`). Not an OSError: typer would end the process with 1."""


class _OneLine(logging.Formatter):
    """What went wrong, without the traceback: that is for the daemon's log."""

    def formatException(self, ei: Any) -> str:
        return ""


def log_to_stderr() -> None:
    """Warnings of a command as lines on stderr; everything, with tracebacks, under REELFS_DEBUG."""
    handler = logging.StreamHandler()
    debug = bool(os.environ.get("REELFS_DEBUG"))
    formatter = logging.Formatter if debug else _OneLine
    handler.setFormatter(formatter("reelfs: %(message)s"))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler], force=True)


def write_all(chunk: bytes | memoryview) -> None:
    """All of it to stdout, past Python's buffer. Raises NobodyReads."""
    rest = memoryview(chunk)
    while rest:
        try:
            rest = rest[os.write(1, rest) :]
        except BrokenPipeError:
            raise NobodyReads from None


def print_line(text: str) -> None:
    """A line on stdout; names that are no UTF-8 come out as the bytes they are."""
    sys.stdout.flush()
    write_all(text.encode("utf-8", "surrogateescape") + b"\n")


def print_json(value: object) -> None:
    """Indented JSON."""
    import json

    print_line(json.dumps(value, indent=2))


def print_table(names: list[str], rows: list[dict[str, Any]]) -> None:
    """Aligned for people, tabs for programs."""
    if not sys.stdout.isatty():
        for row in rows:
            print_line("\t".join(str(row[name]) for name in names))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(*names, box=None)
    for row in rows:
        table.add_row(*(str(row[name]) for name in names))
    Console().print(table)


def only(error: BaseException) -> BaseException:
    """The exception that matters of a group: nurseries wrap even a single one."""
    while isinstance(error, BaseExceptionGroup):
        expected = [e for e in error.exceptions if not isinstance(e, ReelfsError | OSError)]
        error = (expected or error.exceptions)[0]
    return error


def in_trio(work: Callable[[], Awaitable[T]]) -> T:
    """Run to the end; the one error that counts is raised."""
    import trio

    try:
        return trio.run(work)
    except BaseException as error:
        raise only(error) from None


def explained(error: Exception) -> tuple[str, int]:
    """One line and the exit code of an error."""
    if hasattr(error, "format_message"):  # the command line itself: typer's usage errors
        return f"{error.format_message()} (`reelfs --help`)", 2
    if isinstance(error, ConfigError):
        return str(error), 2
    if isinstance(error, ReelfsError):
        return str(error) or type(error).__name__, 1
    if isinstance(error, OSError):
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror or error}", 1
    return f"this is a bug of reelfs: {type(error).__name__}: {error} (REELFS_DEBUG=1 shows where)", 1


@contextmanager
def progress_bar(what: str, total: int | None) -> Iterator[Callable[..., object]]:
    """On a terminal a bar with bytes, rate and time left; elsewhere nothing. Gives what to tell bytes to
    (and, with `total=`, how many there will be)."""
    if not sys.stderr.isatty():
        yield lambda count, total=None: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda count, total=total: bar.update(task, advance=count, total=total)
