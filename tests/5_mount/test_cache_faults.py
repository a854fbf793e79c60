"""What stands beside the daemon and fails: the disk cache, the decoding processes, the daemon itself."""

from __future__ import annotations

import errno
import os
import random
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vfs import mounts

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

from sample_media import encode  # type: ignore[import-not-found]  # noqa: E402

from tests.faulty_mounts import SLACK, bench, eventually, read, read_uncached, started, timed  # noqa: E402
from tests.servers import Server, environ_for, moto_server  # noqa: E402

MountIt = Callable[..., Any]
BODY = random.Random(11).randbytes(3_000_017)
FRAMES = tuple(f"game@{n / 10}s.jpg" for n in range(3, 9))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs: only root may")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as running:
        yield running


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = encode(tmp_path_factory.mktemp("game") / "game.mp4", frames=45, gop=15, size=(160, 96))
    return Path(path).read_bytes()


# -- the disk cache ----------------------------------------------------------------------------------------


def cached_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("blocks-1/*/*") if path.is_file())


def spoil(path: Path, number: int) -> None:
    """One bit turned (in the header, the middle, at the end), or the file cut, or filled with another's."""
    data = bytearray(path.read_bytes())
    how = number % 5
    if how < 3:
        data[(0, len(data) // 2, len(data) - 1)[how]] ^= 1
    elif how == 3:
        del data[len(data) * 2 // 3 :]
    else:
        data[-4096:] = bytes(min(4096, len(data)))
    path.write_bytes(data)


def assert_private(cache: Path) -> None:
    """Nobody but the owner may look into it."""
    found = [cache / "blocks-1", *(cache / "blocks-1").rglob("*")]
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in found} == {0}


def test_a_changed_byte_in_the_disk_cache_is_never_served(
    mounted: MountIt, server: Server, game: bytes, tmp_path: Path
) -> None:
    """Between two mounts: what was good is served without asking the store, what was spoilt is fetched.

    The cache is its owner's alone, also in a folder that was open to all before.
    """
    objects = {f"part{n}.bin": BODY[n * 1000 :] for n in range(6)} | {"game.mp4": game}
    clip, cache = "game@0.4s-1s.mp4", tmp_path / "new" / "cache"
    with bench(mounted, server, "spoilt", objects, cache_dir=str(cache)) as first:
        expected = {name: read(first / name) for name in (*objects, clip)}
        assert {name: expected[name] for name in objects} == objects
        eventually(lambda: len(cached_files(cache)) >= len(objects))
        eventually(lambda: not list(cache.glob("blocks-1/*/.new")))
    assert_private(cache)
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    (cache / "blocks-1").chmod(0o777)
    files = cached_files(cache)
    for number, path in enumerate(files[:-1]):
        spoil(path, number)
    with bench(mounted, server, "spoilt", {}, cache_dir=str(cache)) as second:
        second.mount.expect_log("disk cache .*: a damaged file was removed|: mounted$")
        assert {name: read(second / name) for name in expected} == expected
        eventually(lambda: second.status()["counters"]["cache_faults"]["bad"] >= 1)
        assert second.proxy.counts().requests["get"] >= 1
        assert second.status()["counters"]["cache_hits"].get("disk", 0) >= 1  # the one left alone
    assert_private(cache)


@contextmanager
def small_disk(path: Path, options: str) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@needs_root
@pytest.mark.parametrize(
    "options",
    [
        pytest.param("size=1m", marks=pytest.mark.slow),
        "size=600m,nr_inodes=8",
        pytest.param("size=259m", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_means_reading_through(
    mounted: MountIt, server: Server, game: bytes, tmp_path: Path, options: str
) -> None:
    """No room, no inodes, or room for a few parts only: every byte is right, nothing fails."""
    disk, bucket = tmp_path / "disk", "full" + re.sub(r"\W", "", options.replace("_", ""))
    objects = {f"part{n}.bin": BODY[n * 1000 :] for n in range(4)} | {"game.mp4": game}
    with (
        small_disk(disk, options),
        bench(mounted, server, bucket, objects, cache_dir=str(disk / "cache"), memory="16MiB") as made,
    ):
        made.mount.expect_log("disk cache .* cannot be used .*: reading through|: mounted$")
        for _ in range(2):
            assert {name: read_uncached(made / name) for name in objects} == objects
        assert isinstance(read(made / "game@0.4s-1s.mp4"), bytes)
        assert isinstance(read(made / FRAMES[0]), bytes)


def reelfs(*arguments: str | Path, environ: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vfs.cli", *map(str, arguments)]
    env = {**os.environ, **(environ or {})}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)


def test_a_cache_folder_of_another_mount_or_user_is_refused(
    mounted: MountIt, server: Server, game: bytes, tmp_path: Path
) -> None:
    """In one line that names the folder; the first mount is not disturbed."""
    cache, point, link = tmp_path / "cache", tmp_path / "second", tmp_path / "linked"
    point.mkdir()
    link.mkdir()
    (link / "blocks-1").symlink_to(tmp_path)
    with bench(mounted, server, "twice", {"game.mp4": game}, cache_dir=str(cache)) as made:
        assert read(made / "game.mp4") == game
        for folder, why in ((cache, "in use by another mount"), (link, "not a directory of this user")):
            done = reelfs(
                *("mount", "s3://twice", point, "--cache-dir", folder, "--log-file", tmp_path / "log"),
                environ=environ_for(server.url),
            )
            assert done.returncode != 0
            assert done.stderr.count("\n") == 1
            assert str(folder) in done.stderr
            assert why in done.stderr
            assert mounts.mount_at(point) is None
        assert read_uncached(made / "game.mp4") == game


# -- decoding processes ------------------------------------------------------------------------------------


def decoders(mount: Any) -> list[int]:
    """The decoding processes of a daemon."""
    tasks = Path(f"/proc/{mount.process.pid}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def is_asking(pid: int, mount: Any) -> bool:
    """A program waits for the daemon, and the daemon for something else."""
    waits = [Path(f"/proc/{number}/wchan").read_text() for number in (pid, mount.process.pid)]
    return waits[0].startswith(("request_wait", "fuse", "folio_wait")) and "poll" in waits[1]


@pytest.fixture
def cinema(mounted: MountIt, game: bytes) -> Any:
    """A mount of a folder with one decoding process, which has made one frame."""
    mount = mounted({"game.mp4": game}, **{"workers.processes": "1", "deadline": "3s"})
    assert isinstance(read(mount / FRAMES[0]), bytes)
    assert len(decoders(mount)) == 1
    return mount


def test_a_decoder_killed_in_the_middle_costs_one_frame_once(cinema: Any) -> None:
    cinema.expect_log(r"the process died|the worker of .* died|: mounted$")
    (pid,) = decoders(cinema)
    os.kill(pid, signal.SIGSTOP)  # in the middle, wherever that is
    with started(["cat", cinema / FRAMES[1]]) as reader:
        eventually(lambda: is_asking(reader.pid, cinema))
        os.kill(pid, signal.SIGKILL)
        _, said = reader.communicate(timeout=10)
        assert (reader.returncode, b"Input/output error" in said) in {(1, True), (0, False)}
    assert isinstance(read(cinema / FRAMES[1]), bytes)
    assert isinstance(read(cinema / FRAMES[2]), bytes)
    assert not is_running(pid)


def test_a_decoder_killed_while_idle_costs_at_most_one_error(cinema: Any) -> None:
    cinema.expect_log(r"died|: mounted$")
    (pid,) = decoders(cinema)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not is_running(pid))
    outcomes = [read(cinema / name) for name in FRAMES[1:]]
    assert sum(not isinstance(outcome, bytes) for outcome in outcomes) <= 1
    assert isinstance(outcomes[-1], bytes)


def test_a_decoder_that_hangs_is_ended_at_the_deadline(cinema: Any) -> None:
    """Meanwhile everything else answers; afterwards the same frame comes from a new process."""
    cinema.expect_log("took longer than any operation may|no result within|: mounted$")
    (pid,) = decoders(cinema)
    os.kill(pid, signal.SIGSTOP)
    try:
        with started(["cat", cinema / FRAMES[1]]) as reader:
            eventually(lambda: is_asking(reader.pid, cinema))
            assert isinstance(read(cinema / "game@0.4s-1s.mp4"), bytes)
            assert "game.mp4" in os.listdir(cinema.path)
            assert reader.poll() is None
            _, seconds = timed(lambda: reader.communicate(timeout=20))
            assert reader.returncode == 1
            assert seconds < 3 * 1.25 + SLACK
        assert isinstance(read(cinema / FRAMES[1]), bytes)
        eventually(lambda: not is_running(pid))
    finally:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


# -- the daemon --------------------------------------------------------------------------------------------


def test_decoders_end_with_a_killed_daemon_and_the_dead_mount_can_be_mounted_again(
    cinema: Any, game: bytes, tmp_path: Path
) -> None:
    """A5; with one of them in the middle of a frame."""
    pids = decoders(cinema)
    os.kill(pids[0], signal.SIGSTOP)
    with started(["cat", cinema / FRAMES[1]]) as reader:
        eventually(lambda: is_asking(reader.pid, cinema))
        cinema.kill()
        os.kill(pids[0], signal.SIGCONT)
        assert reader.wait(5) == 1
    eventually(lambda: not any(map(is_running, pids)))
    with pytest.raises(OSError) as failure:
        os.listdir(cinema.path)
    assert failure.value.errno == errno.ENOTCONN
    options = ("--log-file", tmp_path / "log", "-o", "plugins.block=mp4")
    refused = reelfs("mount", cinema.settings["source"], cinema.path, *options)
    assert refused.returncode != 0
    assert "dead mount" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert reelfs("umount", cinema.path).returncode == 0
    assert os.listdir(cinema.path) == []
    assert reelfs("mount", cinema.settings["source"], cinema.path, *options).returncode == 0
    assert read(cinema / "game.mp4") == game
    assert reelfs("umount", cinema.path).returncode == 0


def test_a_daemon_killed_under_readers_gives_them_errors_never_wrong_bytes(
    mounted: MountIt, server: Server, tmp_path: Path
) -> None:
    """And what its disk cache holds afterwards is right."""
    cache = tmp_path / "cache"
    with bench(mounted, server, "killed", {"big.bin": BODY}, cache_dir=str(cache)) as first:
        first.proxy.shape(bandwidth=3e6)
        commands = [
            ["dd", f"if={first / 'big.bin'}", f"of={tmp_path / f'out{n}'}", "bs=64k"] for n in range(4)
        ]
        readers = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for command in commands]
        eventually(lambda: first.proxy.counts().body.get("get", 0) > 300_000)
        first.mount.kill()
        assert all(reader.wait(10) != 0 for reader in readers)
        for number in range(4):
            assert BODY.startswith((tmp_path / f"out{number}").read_bytes())
    with bench(mounted, server, "killed", {}, cache_dir=str(cache)) as second:
        assert read(second / "big.bin") == BODY


def test_told_to_end_under_load_it_unmounts_soon(mounted: MountIt, server: Server, tmp_path: Path) -> None:
    with bench(mounted, server, "ended", {"big.bin": BODY}) as made:
        made.proxy.shape(bandwidth=1e6)
        readers = [
            subprocess.Popen(["cat", made / "big.bin"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for _ in range(8)
        ]
        try:
            eventually(lambda: made.proxy.counts().body.get("get", 0) > 100_000)
            made.mount.process.send_signal(signal.SIGTERM)
            assert made.mount.process.wait(10) == 0
            assert all(reader.wait(10) == 1 for reader in readers)
        finally:
            for reader in readers:
                reader.kill()
                reader.wait()
        assert os.listdir(made.mount.path) == []


def test_an_unmount_of_what_is_in_use_says_who_to_ask(cinema: Any) -> None:
    with open(cinema / "game.mp4", "rb") as file:
        done = reelfs("umount", cinema.path)
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "in use" in done.stderr
        assert "--lazy" in done.stderr
        assert file.read(8)[4:] == b"ftyp"
    assert reelfs("umount", cinema.path).returncode == 0
    assert cinema.process.wait(10) == 0
