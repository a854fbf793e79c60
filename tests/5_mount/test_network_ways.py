"""How the store is reached: names that are gone, proxies that go, a machine that slept."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import self_signed
from tests.faults.proxy import Proxy
from tests.faults.rules import Rule
from tests.faulty_mounts import (
    HONEST,
    SLACK,
    Bench,
    MountIt,
    bench,
    eventually,
    read,
    read_uncached,
    started,
    timed,
)
from tests.ports import free_port
from tests.servers import environ_for, moto_server, rclone_server

pytestmark = pytest.mark.fuse

ROOT = Path(__file__).resolve().parents[2]
BODY = random.Random(8).randbytes(200_000)
OBJECTS = {"cached.bin": BODY, "unread.bin": BODY, "folder/a.bin": b"a"}
#: A name service as a daemon meets it; `state` is a file that says how it is.
NAME_SERVICE = """
import os, socket, time
real = socket.getaddrinfo
def getaddrinfo(host, *rest, **named):
    if host != "store.test":
        return real(host, *rest, **named)
    state = open(os.environ["NAME_SERVICE"]).read()
    if state == "hangs":
        time.sleep(3)
    if state:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return real("127.0.0.1", *rest, **named)
socket.getaddrinfo = getaddrinfo
"""


@pytest.mark.parametrize("how", ["fails", pytest.param("hangs", marks=pytest.mark.slow)])
def test_a_name_service_that_is_gone(mounted: MountIt, tmp_path: Path, how: str) -> None:
    state, patch = tmp_path / "state", tmp_path / "patch"
    state.write_text("")
    buckets = tmp_path / "buckets"
    patch.mkdir()
    buckets.mkdir()
    (patch / "sitecustomize.py").write_text(NAME_SERVICE)
    environ = {"PYTHONPATH": str(patch), "NAME_SERVICE": str(state)}
    with rclone_server(buckets) as server, Proxy(server.url) as proxy:
        server.fill("names", OBJECTS)
        url = proxy.url.replace("127.0.0.1", "store.test")
        mount = mounted(
            {}, source="s3://names", environ=environ_for(url) | environ, deadline=2, cache_dir="none"
        )
        mount.expect_log(" (WARNING|INFO) ")
        made = Bench(mount, server, proxy, "names")
        assert read(made / "cached.bin") == BODY
        state.write_text(how)
        proxy.down()  # connections that are open need no name
        proxy.up()
        assert read(made / "unread.bin") in HONEST
        eventually(lambda: bool(made.status()["offline"]), 10)
        data, took = timed(lambda: read_uncached(made / "cached.bin"))
        assert data == BODY
        assert took < SLACK
        with started(["cat", made / "unread.bin"]) as waiting:
            waiting.send_signal(signal.SIGINT)
            assert timed(lambda: waiting.wait(20))[1] < SLACK
        state.write_text("")
        eventually(lambda: read(made / "unread.bin") == BODY, 20)
        eventually(lambda: not made.status()["offline"], 10)
        mount.kill(signal.SIGTERM)


@pytest.fixture(params=["https", pytest.param("http", marks=pytest.mark.slow)])
def behind(request: pytest.FixtureRequest, mounted: MountIt, tmp_path: Path) -> Iterator[Behind]:
    """A bucket that only a proxy can reach, mounted."""
    certificate = self_signed(tmp_path) if request.param == "https" else None
    (tmp_path / "buckets").mkdir()
    with rclone_server(tmp_path / "buckets", certificate=certificate) as server:
        server.fill("ways", OBJECTS)
        made = Behind(request.param, server.url, tmp_path)
        try:
            made.start()
            mount = mounted({}, source="s3://ways", environ=made.environ, deadline=2, cache_dir="none")
            mount.expect_log(" (WARNING|INFO) ")
            made.mount = mount
            yield made
            mount.kill(signal.SIGTERM)
        finally:
            made.stop()


class Behind:
    """The proxy, and the environment that leads through it."""

    def __init__(self, scheme: str, server: str, folder: Path) -> None:
        self.mount: Any = None
        self.scheme, self._port, self._log = scheme, free_port(), folder / "proxy.log"
        self._where = f"store.invalid=127.0.0.1:{server.rpartition(':')[2]}"
        self._process: subprocess.Popen[bytes] | None = None
        proxy, nobody = f"http://127.0.0.1:{self._port}", {"NO_PROXY": "", "no_proxy": ""}
        self.environ = environ_for(f"{scheme}://store.invalid") | nobody | {f"{scheme.upper()}_PROXY": proxy}
        self.environ[f"{scheme}_proxy"] = proxy
        if scheme == "https":
            self.environ["AWS_CA_BUNDLE"] = str(folder / "cert.pem")

    def start(self) -> None:
        command = [sys.executable, str(ROOT / "tests/webproxy.py"), str(self._port), self._where]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log)
        eventually(self._listens, 20)

    def _listens(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
        except OSError:
            return False
        return True

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def requests(self) -> list[str]:
        return self._log.read_text().splitlines()


def test_a_proxy_leads_to_the_store_and_may_go_away(behind: Behind) -> None:
    mount = behind.mount
    assert os.listdir(mount / "folder") == ["a.bin"]
    assert read(mount / "cached.bin") == BODY
    asked = behind.requests()
    if behind.scheme == "http":  # listings by botocore, reads by our own client
        assert any(line.startswith("GET http://store.invalid/ways?") for line in asked)
        assert any(line.startswith("GET http://store.invalid/ways/cached.bin") for line in asked)
    else:
        assert set(asked) == {"CONNECT store.invalid:443"}
    behind.stop()
    assert read(mount / "unread.bin") in HONEST
    assert read_uncached(mount / "cached.bin") == BODY
    behind.start()
    eventually(lambda: read(mount / "unread.bin") == BODY, 20)


def test_a_laptop_that_slept(mounted: MountIt) -> None:
    """All stands still, connections are dead afterwards, and who waited goes on or can be ended at once."""
    with moto_server() as server, bench(mounted, server, "slept", OBJECTS, deadline=5) as made:
        made.mount.expect_log(" (WARNING|INFO) ")
        assert read(made / "cached.bin") == BODY
        made.mount.process.send_signal(signal.SIGSTOP)
        first, second = made / "unread.bin", made / "folder/a.bin"
        with started(["cat", first]) as waiting, started(["cat", second]) as other:
            try:
                time.sleep(0.3)
                other.send_signal(signal.SIGINT)
                assert timed(lambda: other.wait(5))[1] < 1
                made.proxy.down()
                made.proxy.up()
                time.sleep(2)
            finally:
                made.mount.process.send_signal(signal.SIGCONT)
            assert waiting.communicate(timeout=20)[0] == BODY
        made.put("folder/b.bin", b"b")
        assert read(made / "cached.bin") == BODY
        assert not made.status()["offline"]


def test_a_name_that_waits_holds_up_no_other_name_of_its_folder(mounted: MountIt) -> None:
    with (
        moto_server() as server,
        bench(mounted, server, "names", OBJECTS, deadline=20, negative_ttl=0) as made,
    ):
        assert "slow.bin" not in os.listdir(made.mount.path)
        for name in ("slow.bin", "quick.bin", "other.bin"):
            made.put(name, b"new")
        made.proxy.fault(Rule("hang", kind="head", key="*slow.bin"))
        with started(["cat", made / "slow.bin"]) as waiting:
            eventually(lambda: any("slow.bin" in entry.path for entry in made.proxy.log()))
            for name in ("quick.bin", "other.bin"):
                data, took = timed(partial(read, made / name))
                assert data == b"new"
                assert took < SLACK
            assert waiting.poll() is None
            waiting.send_signal(signal.SIGINT)
            assert timed(lambda: waiting.wait(20))[1] < SLACK
