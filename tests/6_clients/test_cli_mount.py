"""The commands on a real mount: from `reelfs mount` to `reelfs umount`, as processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from vfs import mounts

pytestmark = pytest.mark.fuse

CONTENT = b"kick off\n" * 300_000


def environment(home: Path) -> Mapping[str, str]:
    return {"HOME": str(home), "PATH": os.environ["PATH"]}


def reelfs(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vfs.cli", *map(str, arguments)],
        capture_output=True,
        env=environment(home),
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def mountpoint(home: Path) -> Iterator[Path]:
    library, point = home / "library", home / "my mount"
    (library / "games").mkdir(parents=True)
    (library / "games" / "notes.txt").write_bytes(CONTENT)
    (library / "top.txt").write_bytes(b"top")
    point.mkdir()
    done = reelfs(home, "mount", library, point, "--umask", "027", "-o", "expand=*.none")
    assert done.returncode == 0, done.stderr
    assert (done.stdout, done.stderr) == (b"", b"")
    try:
        yield point
    finally:
        # Unmounted whatever a test did with it; a failure must leave no mount behind.
        if mounts.mount_at(point) is not None:
            mounts.unmount(point, lazy=True)


def test_the_mount_answers_when_the_command_returns(mountpoint: Path) -> None:
    found = mounts.mount_at(mountpoint)
    assert found is not None
    assert found.ours
    assert (mountpoint / "games" / "notes.txt").read_bytes() == CONTENT
    assert (mountpoint / "top.txt").stat().st_mode & 0o777 == 0o440


def test_ls_stat_cat_and_explain_of_mounted_paths(home: Path, mountpoint: Path) -> None:
    assert reelfs(home, "ls", mountpoint).stdout == b"games/\nsearch/\ntop.txt\n"
    assert reelfs(home, "cat", mountpoint / "games" / "notes.txt").stdout == CONTENT
    found = json.loads(reelfs(home, "stat", "--json", mountpoint / "games" / "notes.txt").stdout)
    assert (found["size"], found["attributes"]["key"]) == (len(CONTENT), "games/notes.txt")
    text = reelfs(home, "explain", mountpoint / "games" / "notes.txt").stdout.decode()
    assert "key       games/notes.txt\n" in text
    assert "free" in text


def test_the_mounted_and_the_unmounted_answer_are_the_same(home: Path, mountpoint: Path) -> None:
    mounted = reelfs(home, "explain", mountpoint / "top.txt").stdout
    assert mounted == reelfs(home, "explain", home / "library", "top.txt").stdout
    assert b"top.txt" in mounted


def test_status_files_on_the_mount(home: Path, mountpoint: Path) -> None:
    status = json.loads((mountpoint / ".reelfs" / "status.json").read_bytes())
    assert status["source"] == str(home / "library")
    assert {plugin["name"] for plugin in status["plugins"]} >= {"control"}
    assert b"umask = 0o027  # command line: --umask" in (mountpoint / ".reelfs" / "config.toml").read_bytes()
    assert b"reelfs_fuse_seconds_count" in (mountpoint / ".reelfs" / "metrics").read_bytes()
    assert (mountpoint / ".raw" / "top.txt").read_bytes() == b"top"
    assert not {".reelfs", ".raw"} & set(os.listdir(mountpoint))


def test_errors_on_the_mount_are_one_line(home: Path, mountpoint: Path) -> None:
    done = reelfs(home, "cat", mountpoint / "gone.txt")
    assert done.returncode == 1
    assert done.stderr.decode() == f"reelfs: {mountpoint}/gone.txt: No such file or directory\n"


def test_a_second_mount_on_it_is_refused(home: Path, mountpoint: Path) -> None:
    done = reelfs(home, "mount", home / "library", mountpoint)
    assert done.returncode == 2
    assert b"is busy" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_doctor_finds_it_well(home: Path, mountpoint: Path) -> None:
    done = reelfs(home, "doctor", "--json", home / "library", mountpoint)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert checks["mountpoint"]["state"] == "ok"
    assert checks["source"]["state"] == "ok"
    assert done.returncode == 0


def test_umount_says_when_it_is_in_use_and_then_leaves_an_empty_folder(home: Path, mountpoint: Path) -> None:
    with (mountpoint / "top.txt").open("rb") as file:
        busy = reelfs(home, "umount", mountpoint)
        assert busy.returncode == 1
        assert b"is in use" in busy.stderr
        assert file.read() == b"top"
    done = reelfs(home, "umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, b"")
    assert mounts.mount_at(mountpoint) is None
    assert os.listdir(mountpoint) == []
