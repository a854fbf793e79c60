"""Decoding processes have no files, no network, no programs: a hostile video is contained."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

from vfs import confine, workerproc
from vfs.workers import configure, in_worker, open_workers

sys.path.append(str(Path(__file__).parent))  # a worker imports the attempts by name

import isolated

needs_landlock = pytest.mark.skipif(confine.landlock_abi() == 0, reason="this kernel has no Landlock")


def attempts(*wanted: tuple[str, str]) -> list[str]:
    """What becomes of them in one worker."""

    async def main() -> list[str]:
        async with open_workers():
            return [await in_worker(isolated.attempt, *one) for one in wanted]

    return trio.run(main)


@contextmanager
def listening(family: int, address: object, kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with socket.socket(family, kind) as made:
        made.bind(address)  # type: ignore[arg-type]
        if kind == socket.SOCK_STREAM:
            made.listen()
        yield made


@needs_landlock
def test_no_file_of_a_user_is_read_or_written(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("key")
    names = ("read", "write", "remove", "rename", "mode")
    assert attempts(*((name, str(secret)) for name in names)) == ["PermissionError"] * 5
    assert attempts(("list", str(tmp_path)), ("link", str(tmp_path / "x"))) == ["PermissionError"] * 2
    assert attempts(("read", "/etc/passwd"), ("environ", str(os.getpid()))) == ["PermissionError"] * 2
    assert secret.read_text() == "key"
    assert os.listdir(tmp_path) == ["secret"]


def test_no_network_and_no_socket_but_the_feeding_one(tmp_path: Path) -> None:
    with (
        listening(socket.AF_INET, ("127.0.0.1", 0)) as inet,
        listening(socket.AF_UNIX, str(tmp_path / "s")),
        listening(socket.AF_UNIX, f"\0reelfs-test-{os.getpid()}"),
        listening(socket.AF_UNIX, str(tmp_path / "d"), socket.SOCK_DGRAM),
    ):
        found = attempts(
            ("inet", f"127.0.0.1:{inet.getsockname()[1]}"),
            ("unix", str(tmp_path / "s")),
            ("abstract", f"reelfs-test-{os.getpid()}"),
            ("datagram", str(tmp_path / "d")),
            ("listen", "reelfs-test-x"),
        )
    assert found == ["PermissionError"] * 5


def test_no_program_and_no_other_process() -> None:
    found = attempts(
        ("run", "/bin/true"), ("fork", ""), ("signal", str(os.getpid())), ("ptrace", str(os.getpid()))
    )
    assert found == ["PermissionError"] * 4


def test_what_decoding_needs_is_there() -> None:
    assert (
        attempts(("thread", ""), ("module", "colorsys"), ("module", "av"), ("read", "/dev/null"))
        == ["done"] * 4
    )


def test_it_says_what_holds_and_can_be_switched_off(tmp_path: Path) -> None:
    async def held() -> tuple[str, ...]:
        async with open_workers():
            return await in_worker(workerproc.isolation)

    assert "system calls" in trio.run(held)
    (tmp_path / "a").write_text("a")
    configure(isolate=False)
    try:
        assert trio.run(held) == ()
        assert attempts(("read", str(tmp_path / "a"))) == ["done"]
    finally:
        configure(isolate=True)


def test_the_filter_ends_every_path_in_a_verdict() -> None:
    for column, architecture in confine._ARCHITECTURES.values():
        made = confine.program(column, architecture, 1)
        assert len(made) <= 4096  # BPF_MAXINSNS
        for at, (code, if_true, if_false, _) in enumerate(made):
            assert at + 1 + max(if_true, if_false) < len(made) or code == 0x06
        assert made[-1][0] == 0x06


def test_secrets_are_not_in_the_environment_of_a_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    from vfs.storage import credentials

    monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "hush")
    monkeypatch.setattr(credentials, "_withdrawn", {})
    credentials.withdraw()
    try:

        async def main() -> str | None:
            async with open_workers():
                return await in_worker(os.getenv, "R2_SECRET_ACCESS_KEY")

        assert trio.run(main) is None
        assert credentials.environment(None)["R2_SECRET_ACCESS_KEY"] == "hush"
    finally:
        monkeypatch.setenv("R2_SECRET_ACCESS_KEY", "hush")
