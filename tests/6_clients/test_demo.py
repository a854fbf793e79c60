"""scripts/demo as somebody runs it, in a checkout of its own; only the set-up is taken out (CI does that)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfs.mounts import mount_at, unmount

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.timeout(300),  # encodes a library, starts some thirty programs
    pytest.mark.fuse,
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The scripts in a folder with a space in its name, a set-up that only says that it was called."""
    root = tmp_path_factory.mktemp("my checkout")
    (root / "scripts").mkdir()
    for name in ("demo", "sample_library.py", "sample_media.py"):
        shutil.copy(ROOT / "scripts" / name, root / "scripts" / name)
    setup = root / "scripts" / "setup"
    setup.write_text("#!/bin/sh\necho set up\n")
    setup.chmod(0o755)
    (root / ".venv").symlink_to(Path(sys.executable).parents[1])
    yield root
    if mount_at(root / ".demo" / "mnt") is not None:
        unmount(root / ".demo" / "mnt", lazy=True)


def demo(checkout: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [checkout / "scripts" / "demo", *arguments],
        capture_output=True,
        text=True,
        env={"HOME": str(checkout / "home"), "PATH": os.environ["PATH"]},
        cwd="/",
        timeout=110,
        check=False,
    )


def test_it_shows_everything_and_unmounts_when_asked_not_to_stay(checkout: Path) -> None:
    done = demo(checkout, "--no-stay")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("set up\n")
    for shown in ("database.sqlite", "120", "JPEG (480, 270)", "Class B", '"fragmented"'):
        assert shown in done.stdout
    assert mount_at(checkout / ".demo" / "mnt") is None
    frame = (checkout / ".demo" / "frame.jpg").read_bytes()
    assert frame.startswith(b"\xff\xd8")


def test_it_leaves_a_mount_and_says_where_then_cleans_up(checkout: Path) -> None:
    first = demo(checkout)
    assert first.returncode == 0, first.stdout + first.stderr
    mnt = checkout / ".demo" / "mnt"
    assert mount_at(mnt) is not None
    assert f"mounted at {mnt}" in first.stdout
    assert ".venv/bin/reelfs umount .demo/mnt" in first.stdout
    second = demo(checkout)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "found .demo/user_data/a" in second.stdout
    assert mount_at(mnt) is not None
    cleaned = demo(checkout, "--unmount")
    assert (cleaned.returncode, cleaned.stderr) == (0, "")
    assert mount_at(mnt) is None
    assert not (checkout / ".demo").exists()
    assert demo(checkout, "--unmount").returncode == 0


def test_mistakes_are_one_line(checkout: Path) -> None:
    wrong = demo(checkout, "--stay")
    assert wrong.returncode == 2
    assert wrong.stderr == "usage: scripts/demo [--no-stay | --unmount]\n"
    (checkout / ".demo").write_text("in the way")
    try:
        blocked = demo(checkout)
    finally:
        (checkout / ".demo").unlink()
    assert blocked.returncode == 1
    assert blocked.stderr.count("\n") == 1


def test_a_library_that_is_not_ours_is_left_alone(checkout: Path) -> None:
    stranger = checkout / ".demo" / "user_data" / "a" / "mine.txt"
    stranger.parent.mkdir(parents=True)
    stranger.write_text("mine")
    done = demo(checkout)
    assert done.returncode == 1
    assert "is no library of this script" in done.stderr
    assert stranger.read_text() == "mine"
    shutil.rmtree(checkout / ".demo")
