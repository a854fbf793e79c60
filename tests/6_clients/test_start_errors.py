"""What keeps a mount from starting: one line that says how to mend it, soon, and nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.ports import free_port
from tests.servers import Server, environ_for, rclone_server
from vfs import mounts

pytestmark = pytest.mark.fuse
#: Starting Python takes part of it; a store that is not there is tried for the deadline, here 2 s.
SOON = 20.0


def in_namespace(*prepare: str) -> list[str]:
    """A command line that first changes the machine, in a mount namespace of its own."""
    return ["unshare", "-m", "sh", "-c", " && ".join([*prepare, 'exec "$@"']), "sh"]


def can_unshare() -> bool:
    return subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False).returncode == 0


def start(
    *arguments: str | Path,
    environ: Mapping[str, str] | None = None,
    home: Path,
    before: list[str] | None = None,
    deadline: str = "2s",
) -> subprocess.CompletedProcess[str]:
    """`reelfs mount`, as a user without any configuration."""
    env = {"HOME": str(home), "PATH": os.environ["PATH"], "REELFS_DEADLINE": deadline, **(environ or {})}
    return subprocess.run(
        [*(before or []), sys.executable, "-m", "vfs.cli", "mount", *map(str, arguments)],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
        check=False,
    )


def daemons_of(home: Path) -> list[str]:
    """Command lines of daemons that run with this home."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"HOME={home}\0".encode() in (folder / "environ").read_bytes() + b"\0":
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


@pytest.fixture
def point(tmp_path: Path) -> Path:
    (tmp_path / "point").mkdir()
    return tmp_path / "point"


@pytest.fixture
def library(tmp_path: Path) -> Path:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "a.txt").write_bytes(b"a")
    return tmp_path / "library"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """rclone: it checks signatures."""
    root = tmp_path_factory.mktemp("buckets")
    (root / "bucket").mkdir()
    (root / "bucket" / "a.txt").write_bytes(b"a")
    with rclone_server(root) as running:
        yield running


def check_refusal(done: subprocess.CompletedProcess[str], seconds: float, words: tuple[str, ...]) -> None:
    assert done.returncode in (1, 2), done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("reelfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert seconds < SOON
    for word in words:
        assert word in done.stderr, done.stderr


def refused(
    *arguments: str | Path,
    words: tuple[str, ...],
    home: Path,
    environ: Mapping[str, str] | None = None,
    before: list[str] | None = None,
    deadline: str = "2s",
) -> None:
    """The mount fails as it should."""
    started = time.monotonic()
    done = start(*arguments, environ=environ, home=home, before=before, deadline=deadline)
    check_refusal(done, time.monotonic() - started, words)
    assert mounts.mount_at(arguments[1]) is None
    assert daemons_of(home) == []


# -- the store ---------------------------------------------------------------------------------------------


def test_without_credentials(home: Path, point: Path, server: Server) -> None:
    nowhere = {"AWS_ENDPOINT_URL": server.url, "AWS_EC2_METADATA_DISABLED": "true"}
    refused("s3://bucket", point, home=home, environ=nowhere, words=("credentials", "R2_ACCESS_KEY_ID"))
    half = nowhere | {"R2_ACCESS_KEY_ID": "x"}
    refused("s3://bucket", point, home=home, environ=half, words=("R2_SECRET_ACCESS_KEY",))


def test_with_a_wrong_secret(home: Path, point: Path, server: Server) -> None:
    wrong = environ_for(server.url) | {"AWS_SECRET_ACCESS_KEY": "wrongwrongwrongwrong"}
    refused("s3://bucket", point, home=home, environ=wrong, words=("refused the credentials", "check keys"))


def test_without_such_a_bucket(home: Path, point: Path, server: Server) -> None:
    refused(
        "s3://nothere", point, home=home, environ=server.environ, words=("no such bucket", "check the name")
    )


def test_with_nobody_listening(home: Path, point: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    refused(
        "s3://bucket",
        point,
        home=home,
        environ=environ_for(url),
        words=("cannot be reached", "127.0.0.1"),
        deadline="30s",
    )


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("s3://", ("names no bucket",)),
        ("gs://bucket", ("gs://",)),
        ("s3://key:secret@bucket", ("credentials do not belong in a source",)),
        ("r2://bucket", ("R2_ACCOUNT_ID",)),
        ("s3://Bad Bucket!", ("ucket",)),
        ("/no/such/folder", ("no such folder",)),
    ],
)
def test_with_a_bad_source(home: Path, point: Path, source: str, words: tuple[str, ...]) -> None:
    keys = {"AWS_ACCESS_KEY_ID": "xxxxxxxxxxxx", "AWS_SECRET_ACCESS_KEY": "yyyyyyyyyyyy"}
    keys["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{free_port()}"
    if source.startswith("r2"):
        del keys["AWS_ENDPOINT_URL"]
    refused(source, point, home=home, environ=keys, words=words)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "http://", "http://[::1"])
def test_with_a_bad_endpoint(home: Path, point: Path, endpoint: str) -> None:
    refused("s3://bucket", point, home=home, environ=environ_for(endpoint), words=("URL",))


# -- the mountpoint ----------------------------------------------------------------------------------------


def test_on_what_cannot_be_mounted_on(home: Path, point: Path, library: Path) -> None:
    refused(library, point / "missing", home=home, words=("does not exist", "mkdir -p"))
    file = point.with_name("file")
    file.write_bytes(b"")
    refused(library, file, home=home, words=("is not a folder",))
    (point / "something").write_bytes(b"")
    refused(library, point, home=home, words=("is not empty", "nonempty"))
    refused(library, library, home=home, words=("not empty",))
    (library / "inside").mkdir()
    refused(library, library / "inside", home=home, words=("contain one another",))


def test_on_a_mount_that_is_there_or_dead(home: Path, point: Path, library: Path) -> None:
    assert start(library, point, home=home).returncode == 0
    try:
        done = start(library, point, home=home)
        check_refusal(done, 0, ("is busy", "reelfs umount"))
        assert (point / "a.txt").read_bytes() == b"a"
        assert len([line for line in daemons_of(home) if "vfs.daemon" in line]) == 1
    finally:
        mounts.unmount(point, lazy=True)


# -- the machine -------------------------------------------------------------------------------------------

needs_namespace = pytest.mark.skipif(not can_unshare(), reason="mount namespaces are not permitted here")


@needs_namespace
def test_without_the_device(home: Path, point: Path, library: Path) -> None:
    """As in a container that was not given it."""
    gone = in_namespace(f"mount -t tmpfs tmpfs {home}", f"mount --rbind {home} /dev")
    refused(library, point, home=home, before=gone, words=("/dev/fuse does not exist", "--device /dev/fuse"))


def test_without_fusermount3(home: Path, point: Path, library: Path) -> None:
    """A user cannot mount without it; root can."""
    tools = home / "bin"
    tools.mkdir()
    done = start(library, point, home=home, environ={"PATH": str(tools)})
    if os.geteuid() == 0:
        assert done.returncode == 0, done.stderr
        assert (point / "a.txt").read_bytes() == b"a"
        mounts.unmount(point)
    else:
        check_refusal(done, 0, ("fusermount3", "apt install fuse3"))


# -- the configuration -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("no_such=1", ("no_such",)),
        ("deadline=soon", ("deadline", "-o")),
        ("=", ("-o",)),
    ],
)
def test_with_a_bad_option(
    home: Path, point: Path, library: Path, option: str, words: tuple[str, ...]
) -> None:
    refused(library, point, "-o", option, home=home, words=words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("memory = ", ("config.toml",)),
        ("memroy = 5", ("config.toml", "memroy")),
        ("[workers]\nprocesses = 'two'", ("config.toml", "workers.processes")),
        ("\xff\xfe", ("config.toml",)),
    ],
)
def test_with_a_bad_configuration(
    home: Path, point: Path, library: Path, text: str, words: tuple[str, ...]
) -> None:
    file = home / "config.toml"
    file.write_bytes(text.encode("latin-1"))
    refused(library, point, "--config", file, home=home, words=words)


def test_without_the_file_of_the_configuration_or_a_log(home: Path, point: Path, library: Path) -> None:
    refused(library, point, "--config", home / "missing.toml", home=home, words=("missing.toml",))
    refused(library, point, "--log-file", "/proc/no/log", home=home, words=("/proc/no/log", "log"))
    refused(
        "s3://bucket",
        point,
        "--cache-dir",
        "/proc/cache",
        home=home,
        environ=environ_for("http://127.0.0.1:9"),
        words=("/proc/cache",),
    )
