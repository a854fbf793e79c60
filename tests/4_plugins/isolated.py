"""What a hostile video would do in a decoding process, each by itself: what came of it, as text."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any


def attempt(name: str, argument: str) -> str:
    """`done`, or the name of what stopped it."""
    try:
        ATTEMPTS[name](argument)
    except OSError as error:
        return type(error).__name__
    return "done"


def _inet(argument: str) -> None:
    host, port = argument.split(":")
    socket.create_connection((host, int(port)), timeout=2).close()


def _unix(argument: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect(argument)


def _abstract(argument: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.connect("\0" + argument)


def _datagram(argument: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as made:
        made.sendto(b"x", argument)


def _listen(argument: str) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind("\0" + argument)


def _fork(argument: str) -> None:
    if os.fork() == 0:
        os._exit(0)


def _ptrace(argument: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.ptrace(16, int(argument), 0, 0) != 0:  # PTRACE_ATTACH
        raise OSError(ctypes.get_errno(), "ptrace")


def _thread(argument: str) -> None:
    made: list[int] = []
    thread = threading.Thread(target=made.append, args=(1,))
    thread.start()
    thread.join()
    assert made == [1]


ATTEMPTS: dict[str, Callable[[str], Any]] = {
    "read": lambda path: Path(path).read_bytes(),
    "list": os.listdir,
    "write": lambda path: Path(path).write_bytes(b"x"),
    "remove": os.unlink,
    "rename": lambda path: os.rename(path, path + "2"),
    "link": lambda path: os.symlink("/", path),
    "mode": lambda path: os.chmod(path, 0o777),
    "environ": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
    "inet": _inet,
    "unix": _unix,
    "abstract": _abstract,
    "datagram": _datagram,
    "listen": _listen,
    "run": lambda program: subprocess.run([program], check=False),
    "fork": _fork,
    "signal": lambda pid: os.kill(int(pid), signal.SIGCONT),
    "ptrace": _ptrace,
    "thread": _thread,
    "module": lambda name: __import__(name),
}
