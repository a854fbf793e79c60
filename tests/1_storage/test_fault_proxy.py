"""The proxy that other tests and all benchmarks measure through: exact counts, every fault, no throttle."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.faults.process import ProxyProcess
from tests.faults.proxy import Proxy, Rule
from tests.faults.rules import Rules
from tests.servers import Server, rclone_server

BODY = random.Random(1).randbytes(300_000)
PATH = "/bucket/games/a.mp4"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with rclone_server(tmp_path_factory.mktemp("rclone")) as running:
        running.fill("bucket", {"games/a.mp4": BODY, "games/b.mp4": BODY})
        yield running


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    with Proxy(server.url) as running:
        yield running


class Client:
    """One connection, signed by boto3."""

    def __init__(self, proxy: Proxy | ProxyProcess) -> None:
        self._proxy = proxy
        self._signed: dict[str, str] = {}
        parts = urlsplit(proxy.url)
        self.connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=10)

    def get(self, start: int = 0, stop: int = 1000, path: str = PATH) -> tuple[int, dict[str, str], bytes]:
        wanted = {"Range": f"bytes={start}-{stop - 1}"}
        self.connection.request("GET", self._signed.get(path) or self._sign(path), headers=wanted)
        with self.connection.getresponse() as answer:
            headers = {name.lower(): value for name, value in answer.getheaders()}
            return answer.status, headers, answer.read()

    def _sign(self, path: str) -> str:
        client = Server(self._proxy.url).client()
        bucket, key = path.lstrip("/").split("/", 1)
        parts = urlsplit(client.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": key}))
        client.close()
        self._signed[path] = f"{parts.path}?{parts.query}"
        return self._signed[path]

    def close(self) -> None:
        self.connection.close()


@pytest.fixture
def client(proxy: Proxy) -> Iterator[Client]:
    made = Client(proxy)
    yield made
    made.close()


def test_passes_bodies_through_and_counts_them(proxy: Proxy, client: Client) -> None:
    for start in (0, 1, 70_000):
        assert client.get(start, start + 50_000)[2] == BODY[start : start + 50_000]
    counts = proxy.counts()
    assert (counts.requests, counts.body, counts.connections) == ({"get": 3}, {"get": 150_000}, 1)
    first = proxy.log()[0]
    assert (first.kind, first.path, first.range) == ("get", "bucket/games/a.mp4", "bytes=0-49999")
    assert first.sent == 50_000


def test_kinds_are_told_apart(proxy: Proxy) -> None:
    through = Server(proxy.url)
    client = through.client()
    client.put_object(Bucket="bucket", Key="put.bin", Body=b"x" * 100)
    client.head_object(Bucket="bucket", Key="put.bin")
    client.list_objects_v2(Bucket="bucket", Prefix="games/")
    client.get_object(Bucket="bucket", Key="put.bin")["Body"].read()
    client.delete_object(Bucket="bucket", Key="put.bin")
    client.close()
    counts = proxy.counts()
    assert counts.requests == {"put": 1, "head": 1, "list": 1, "get": 1, "delete": 1}
    assert counts.body["put"] == 100


def test_status_with_retry_after_for_the_requests_chosen(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("status", kind="get", key="games/a.*", nth=(2,), status=429, retry_after="7"))
    assert client.get()[0] in (200, 206)
    status, headers, body = client.get()
    assert (status, headers["retry-after"]) == (429, "7")
    assert b"TooManyRequests" in body
    assert client.get()[2] == BODY[:1000]
    assert proxy.counts().faults == {"status": 1}


def test_a_rule_for_another_key_or_kind_does_not_fire(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("status", kind="head"))
    proxy.fault(Rule("status", key="games/b.mp4"))
    assert client.get()[2] == BODY[:1000]
    assert proxy.counts().faults == {}
    assert client.get(path="/bucket/games/b.mp4")[0] == 503


def test_probability_is_repeatable() -> None:
    def fired() -> list[bool]:
        rules = Rules(seed=7)
        rules.add(Rule("reset", probability=0.5))
        return [rules.choose("get", "b/k") is not None for _ in range(50)]

    assert fired() == fired()
    assert 10 < sum(fired()) < 40


def test_times_limits_a_rule(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("status", times=2))
    assert [client.get()[0] < 300 for _ in range(4)] == [False, False, True, True]


def test_reset_before_the_answer(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("reset"))
    with pytest.raises(ConnectionResetError):
        client.get()


def test_reset_and_truncation_in_the_body(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("truncate", at=400, nth=(1,)))
    proxy.fault(Rule("reset", at=400, nth=(2,)))
    with pytest.raises(http.client.IncompleteRead) as short:
        client.get()
    assert short.value.partial == BODY[:400]
    client.connection.close()
    with pytest.raises((ConnectionResetError, http.client.IncompleteRead)):
        client.get()
    assert proxy.counts().body == {"get": 800}


def test_flip_changes_one_bit(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("flip", at=17))
    body = client.get()[2]
    assert [i for i in range(1000) if body[i] != BODY[i]] == [17]
    assert body[17] ^ BODY[17] == 1


def test_shift_with_honest_and_with_lying_header(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("shift", nth=(1,)))
    proxy.fault(Rule("shift-silently", nth=(2,)))
    _, headers, body = client.get(100_000, 101_000)
    assert body == BODY[100_000 - 65536 : 101_000 - 65536]
    assert headers["content-range"] == f"bytes {100_000 - 65536}-{100_999 - 65536}/300000"
    _, headers, body = client.get(100, 1000)
    assert body == BODY[100 + 65536 : 1000 + 65536]
    assert headers["content-range"] == "bytes 100-999/300000"


def test_wrong_heads(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("range", nth=(1,)))
    proxy.fault(Rule("etag", nth=(2,)))
    proxy.fault(Rule("header", nth=(3,), headers={"Content-Encoding": "gzip", "Content-Range": None}))
    proxy.fault(Rule("whole", nth=(4,)))
    assert client.get()[1]["content-range"] == "bytes 1-1000/300000"
    assert client.get()[1]["etag"] == '"0123456789abcdef0123456789abcdef"'
    _, headers, _ = client.get()
    assert headers["content-encoding"] == "gzip"
    assert "content-range" not in headers
    assert client.get()[2] == BODY


def test_hang_until_released(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("hang", at=10))
    got: list[object] = []

    def ask() -> None:
        try:
            got.append(client.get())
        except http.client.IncompleteRead as error:
            got.append(error.partial)

    thread = threading.Thread(target=ask)
    thread.start()
    while not proxy.counts().body:
        time.sleep(0.005)
    assert not got
    proxy.release()
    thread.join(5)
    assert got == [BODY[:10]]


def test_a_hang_ends_when_the_client_leaves(proxy: Proxy, client: Client) -> None:
    proxy.fault(Rule("hang"))
    client.connection.timeout = 0.1
    with pytest.raises(TimeoutError):
        client.get()
    client.close()
    until = time.monotonic() + 5
    while proxy.clients and time.monotonic() < until:
        time.sleep(0.005)
    assert proxy.clients == 0
    assert [(entry.fault, entry.status) for entry in proxy.log()] == [("hang", 0)]


def test_down_and_up_on_the_same_port(proxy: Proxy, client: Client) -> None:
    url = proxy.url
    assert client.get()[2] == BODY[:1000]
    proxy.down()
    with pytest.raises(ConnectionError):
        client.get()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((urlsplit(url).hostname, urlsplit(url).port), timeout=5)
    proxy.up()
    client.close()
    assert proxy.url == url
    assert client.get()[2] == BODY[:1000]


def test_delay_is_per_request_and_connections_do_not_wait_for_each_other(proxy: Proxy) -> None:
    clients = [Client(proxy) for _ in range(8)]
    for client in clients:
        client.get()
    proxy.shape(delay=0.5)
    began = time.monotonic()
    threads = [threading.Thread(target=client.get) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    for client in clients:
        client.close()
    assert 0.5 <= took < 3.0  # one after the other it would be 4


def test_bandwidth_is_shared(proxy: Proxy) -> None:
    proxy.shape(bandwidth=2_000_000)
    clients = [Client(proxy) for _ in range(3)]
    began = time.monotonic()
    threads = [threading.Thread(target=client.get, args=(0, 300_000)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    took = time.monotonic() - began
    for client in clients:
        client.close()
    assert took >= 0.4
    assert proxy.counts().body == {"get": 900_000}


def test_silent_on_continue(server: Server) -> None:
    """As R2: whoever waits for `100 Continue` waits in vain, and must send anyway."""
    for answers in (True, False):
        with Proxy(server.url, answers_continue=answers) as proxy:
            parts = urlsplit(proxy.url)
            with socket.create_connection((parts.hostname, parts.port), timeout=0.3) as sock:
                sock.sendall(
                    b"PUT /bucket/x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n"
                )
                try:
                    got = sock.recv(100)
                except TimeoutError:
                    got = b""
                assert got.startswith(b"HTTP/1.1 100") is answers


def test_the_process_does_the_same(server: Server) -> None:
    with ProxyProcess(server.url) as proxy:
        client = Client(proxy)
        proxy.fault(Rule("status", nth=(1,)))
        assert client.get()[0] == 503
        assert client.get(0, 2000)[2] == BODY[:2000]
        assert proxy.counts().requests == {"get": 2}
        assert [entry.sent for entry in proxy.log()] == [0, 2000]
        proxy.reset()
        assert proxy.counts().total == 0
        client.close()


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="no such fault"):
        Rule("explode")


def test_server_root_is_a_folder(server: Server) -> None:
    assert server.root is not None
    assert (Path(server.root) / "bucket" / "games" / "a.mp4").read_bytes() == BODY
