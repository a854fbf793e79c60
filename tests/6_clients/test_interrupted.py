"""Ctrl-C ends every command at once, also while a store does not answer; nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.faults.proxy import Proxy, Rule
from tests.servers import R2, environ_for, r2_server
from vfs import mounts
from vfs.terminal import EXIT_INTERRUPTED

pytestmark = pytest.mark.fuse
#: The store's deadline is 30 s; what ends a command earlier is the signal.
SOON = 15.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as running:
        running.fill("bucket", {"a.bin": os.urandom(100_000)})
        yield running


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        (("ls", "s3://bucket", "/"), "list"),
        (("cat", "s3://bucket", "a.bin"), "get"),
        (("mount", "s3://bucket", "POINT"), "list"),
        (("mount", "--foreground", "s3://bucket", "POINT"), "list"),
    ],
    ids=["ls", "cat", "mount", "mount in the foreground"],
)
def test_ctrl_c_while_the_store_hangs(
    server: R2, tmp_path: Path, arguments: Sequence[str], kind: str
) -> None:
    point = tmp_path / "point"
    point.mkdir()
    with Proxy(server.url) as proxy:
        proxy.fault(Rule("hang", kind=kind))
        environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"], **environ_for(proxy.url)}
        command = [
            sys.executable,
            "-m",
            "vfs.cli",
            *(str(point) if word == "POINT" else word for word in arguments),
        ]
        # A group of its own, as a terminal gives it: the signal reaches a daemon that is being started, too.
        process = subprocess.Popen(
            command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        try:
            until = time.monotonic() + 30
            while not proxy.counts().requests.get(kind):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.01)
            began = time.monotonic()
            os.killpg(process.pid, signal.SIGINT)
            _, said = process.communicate(timeout=30)
            assert time.monotonic() - began < SOON
        finally:
            process.kill()
            process.communicate()
        assert (process.returncode, said) == (EXIT_INTERRUPTED, b"")
        assert mounts.mount_at(point) is None
        proxy.clear()
