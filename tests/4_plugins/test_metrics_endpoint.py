"""Metrics over HTTP: what is listened on, who may ask, what is answered."""

from __future__ import annotations

import http.client
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from prometheus_client.openmetrics import parser

from vfs.control import address
from vfs.errors import ConfigError
from vfs.metricsserver import host_and_port, serve_metrics
from vfs.telemetry import Status


class Over(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=10)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        with address(self._path) as name:
            self.sock.connect(name)


def asked(path: Path, method: str, what: str, **headers: str) -> tuple[int, str, bytes]:
    """Status, kind and body of an answer."""
    connection = Over(path)
    try:
        connection.request(method, what, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_a_unix_socket_of_its_owner(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 40)  # longer than an address may be
    folder.mkdir()
    path = folder / "metrics.sock"
    path.write_text("left by a daemon that was killed")
    openly = {"Accept": "application/openmetrics-text; version=1.0.0"}

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_metrics, f"unix:{path}", Status(source="s3://b"))
            while not path.is_socket():
                await trio.sleep(0.01)
            assert stat.S_IMODE(path.stat().st_mode) == 0o600

            async def ask(method: str, what: str, **headers: str) -> tuple[int, str, bytes]:
                return await trio.to_thread.run_sync(lambda: asked(path, method, what, **headers))

            status, kind, body = await ask("GET", "/metrics")
            assert (status, kind.partition(";")[0]) == (200, "text/plain")
            assert b"\nreelfs_offline 0.0\n" in body
            status, kind, body = await ask("GET", "/metrics?name=x", **openly)
            assert kind.startswith("application/openmetrics-text")
            read: Any = parser.text_string_to_metric_families
            assert len(list(read(body.decode()))) > 20
            assert (await ask("HEAD", "/metrics"))[2] == b""
            assert (await ask("GET", "/"))[0] == 404
            assert (await ask("POST", "/metrics"))[0] == 404
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert not path.exists()


def test_a_socket_that_cannot_be_made_is_said(tmp_path: Path, expected_logs: Callable[[str], None]) -> None:
    expected_logs("metrics.listen: .*No such file")
    trio.run(serve_metrics, f"unix:{tmp_path}/none/metrics.sock", Status())


@pytest.mark.parametrize(
    "where", ["0.0.0.0:9464", "10.0.0.1:1", "example.com:80", "127.0.0.1:x", "127.0.0.1:70000"]
)
def test_what_others_could_reach_is_refused(where: str) -> None:
    with pytest.raises(ConfigError, match=r"metrics\.listen"):
        host_and_port(where)


def test_loopback_in_all_its_spellings() -> None:
    assert host_and_port("[::1]:9464") == ("::1", 9464)
    assert host_and_port("localhost:9464") == host_and_port(":9464") == ("127.0.0.1", 9464)
