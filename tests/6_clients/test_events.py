"""Changes as they happen: a queue pulled over HTTP, the mount that follows it, `reelfs watch`."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.faulty_mounts import eventually
from tests.servers import ACCESS_KEY, SECRET_KEY, moto_server
from vfs import mounts
from vfs.changes import Changes
from vfs.events import Queue, follow, parse
from vfs.pytest_plugin import ExpectedLogs

PATH = "/client/v4/accounts/a1/queues/q1"


class FakeQueue:
    """Cloudflare's pull consumer: messages, leases, acknowledgements, and who may ask."""

    def __init__(self) -> None:
        self.messages: dict[str, Any] = {}
        self.acknowledged: list[str] = []
        self.failures = 0
        self.token = "obviously-fake"
        self.unauthorized = 0
        queue = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                if self.headers["Authorization"] != f"Bearer {queue.token}":
                    queue.unauthorized += 1
                    self._say(401, {"success": False, "errors": ["who?"]})
                elif queue.failures:
                    queue.failures -= 1
                    self._say(503, {"success": False, "errors": ["later"]})
                elif self.path == f"{PATH}/messages/pull":
                    assert set(asked) == {"batch_size", "visibility_timeout_ms"}
                    found = [
                        {"id": lease, "lease_id": lease, "attempts": 1, "body": body}
                        for lease, body in list(queue.messages.items())[: asked["batch_size"]]
                    ]
                    self._say(200, {"success": True, "errors": [], "result": {"messages": found}})
                elif self.path == f"{PATH}/messages/ack":
                    for entry in asked["acks"]:
                        queue.messages.pop(entry["lease_id"], None)
                        queue.acknowledged.append(entry["lease_id"])
                    self._say(200, {"success": True, "errors": [], "result": {"ackCount": 1}})
                else:
                    self._say(404, {"success": False})

            def _say(self, code: int, told: dict[str, Any]) -> None:
                body = json.dumps(told).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}{PATH}"

    def put(self, lease: str, key: str, action: str = "PutObject", *, form: str = "base64") -> None:
        told = {
            "account": "a1",
            "action": action,
            "bucket": "videos",
            "object": {"key": key, "size": 3, "eTag": "e1"},
            "eventTime": "2026-01-01T00:00:00Z",
        }
        text = json.dumps(told)
        self.messages[lease] = {
            "base64": base64.b64encode(text.encode()).decode(),
            "text": text,
            "json": told,
        }[form]


@pytest.fixture
def queue() -> Iterator[FakeQueue]:
    made = FakeQueue()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.05,))
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


def test_events_in_every_form_refresh_their_keys_and_are_acknowledged(queue: FakeQueue) -> None:
    heard: list[str] = []
    changes = Changes(heard.append)
    for number, form in enumerate(("base64", "text", "json")):
        queue.put(f"l{number}", f"u1/games/{form}.mp4", form=form)
    queue.put("other", "u2/games/x.mp4")
    queue.messages["nonsense"] = "no JSON"

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(
                    lambda: follow(Queue(queue.url, lambda: "obviously-fake"), "r2://videos/u1", changes)
                )
                while queue.messages:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert heard == [f"games/{form}.mp4" for form in ("base64", "text", "json")]
    assert set(queue.acknowledged) == {"l0", "l1", "l2", "other", "nonsense"}


def test_a_queue_that_fails_is_asked_again(queue: FakeQueue, expected_logs: ExpectedLogs) -> None:
    expected_logs(r"events\.queue: HTTP 503")
    heard: list[str] = []
    queue.failures = 2
    queue.put("l", "a.mp4", "DeleteObject")

    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                changes = Changes(heard.append)
                nursery.start_soon(
                    lambda: follow(
                        Queue(queue.url, lambda: "obviously-fake"), "r2://videos", changes, pause=0.01
                    )
                )
                while not heard:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert heard == ["a.mp4"]


def test_a_token_that_was_changed_is_used_from_then_on(
    queue: FakeQueue, expected_logs: ExpectedLogs, caplog: pytest.LogCaptureFixture
) -> None:
    expected_logs(r"events\.queue: (no token: set R2_QUEUE_TOKEN|HTTP 401);")
    heard: list[str] = []
    token = ""
    queue.put("l", "a.mp4")

    async def main() -> None:
        nonlocal token
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                asked = Queue(queue.url, lambda: token)
                changes = Changes(heard.append)
                nursery.start_soon(lambda: follow(asked, "r2://videos", changes, pause=0.001))
                for token in ("", "outdated"):
                    while not [r for r in caplog.records if ("401" if token else "no token") in r.message]:
                        await trio.sleep(0.01)
                assert heard == []
                while queue.unauthorized < 3:
                    await trio.sleep(0.01)
                token = queue.token
                while not heard:
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()

    trio.run(main)
    assert len([r for r in caplog.records if "401" in r.message]) == 1  # each reason once
    assert "outdated" not in caplog.text


def test_a_wrong_token_is_said_and_not_the_token(queue: FakeQueue) -> None:
    async def main() -> None:
        await Queue(queue.url, lambda: "wrong").pull()

    with pytest.raises(OSError, match=r"^HTTP 401$"):
        trio.run(main)


@pytest.mark.parametrize(
    "body", [None, 3, "", "{}", {"bucket": "videos"}, {"bucket": "videos", "object": []}]
)
def test_what_is_no_event_is_none(body: object) -> None:
    assert parse(body, "videos", "") is None


def test_removed_or_stored() -> None:
    told = {"bucket": "videos", "action": "LifecycleDeletion", "object": {"key": "a"}}
    event = parse(told, "videos", "")
    assert event is not None
    assert event.to_dict()["action"] == "removed"
    stored = parse({**told, "action": "CompleteMultipartUpload"}, "videos", "")
    assert stored is not None
    assert not stored.removed


@pytest.mark.fuse
def test_a_mount_sees_at_once_what_another_client_stored(queue: FakeQueue, tmp_path: Path) -> None:
    point = tmp_path / "mnt"
    point.mkdir()
    with moto_server() as server:
        server.fill("videos", {"games/a.txt": b"old"})
        environ = {
            "HOME": str(tmp_path),
            "PATH": os.environ["PATH"],
            "R2_ENDPOINT": server.url,
            "R2_ACCESS_KEY_ID": ACCESS_KEY,
            "R2_SECRET_ACCESS_KEY": SECRET_KEY,
        }
        reelfs = [sys.executable, "-m", "vfs.cli"]
        keys = tmp_path / "keys"
        keys.write_text("R2_QUEUE_TOKEN=obviously-fake\n")
        keys.chmod(0o600)
        options = f"dir_ttl=1h,attr_ttl=1h,negative_ttl=1h,events.queue={queue.url},credentials={keys}"
        subprocess.run(
            [*reelfs, "mount", "r2://videos", point, "-o", options], env=environ, check=True, timeout=60
        )
        try:
            games = point / "games"
            assert os.listdir(games) == ["a.txt"]
            assert not (games / "b.txt").exists()
            with subprocess.Popen(
                [*reelfs, "watch", point], env=environ, stdout=subprocess.PIPE, text=True
            ) as watch:
                assert watch.stdout is not None
                assert json.loads(watch.stdout.readline())["action"] == "watching"
                server.fill("videos", {"games/b.txt": b"new", "games/a.txt": b"newer"})
                assert not (games / "b.txt").exists()  # nobody has told yet
                queue.put("1", "games/b.txt")
                queue.put("2", "games/a.txt")
                told = [json.loads(watch.stdout.readline()) for _ in range(2)]
                watch.kill()
            assert [(one["action"], one["path"]) for one in told] == [
                ("stored", "games/b.txt"),
                ("stored", "games/a.txt"),
            ]
            eventually(lambda: sorted(os.listdir(games)) == ["a.txt", "b.txt"])
            eventually(lambda: (games / "a.txt").read_bytes() == b"newer")
            assert (games / "b.txt").read_bytes() == b"new"
        finally:
            mounts.unmount(point, lazy=True)
