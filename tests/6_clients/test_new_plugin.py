"""Plugins of others in an environment of their own: that of the page, and that of `plugin new`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from tests.conftest import can_mount
from tests.docs.doc_pages import ROOT, blocks
from vfs import mounts, pluginskeleton
from vfs.errors import ConfigError


class Environment:
    """A fresh one that sees the packages of this one, and installs without asking anybody."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.python = folder / "bin" / "python"
        site = next(folder.glob("lib/python3*/site-packages"))
        ours = Path(sysconfig.get_path("purelib"))
        # `site.addsitedir` reads the .pth files there, too: an editable install of ours is one.
        (site / "ours.pth").write_text(f"import site; site.addsitedir({str(ours)!r})\n")
        self.home = folder

    def run(self, *words: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(self.python), *map(str, words)],
            cwd=cwd,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
            timeout=110,
        )

    def install(self, package: Path) -> None:
        words = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check")
        done = self.run("-m", "pip", "install", "-q", *words, package)
        assert done.returncode == 0, done.stderr


def library(folder: Path) -> Path:
    games = folder / "library" / "games"
    games.mkdir(parents=True)
    (games / "a.mp4").write_bytes(bytes(range(256)))
    (games / "a.mp4.chapters.txt").write_text("0 Kick-off\n65.5 First goal\n")
    return folder / "library"


def test_the_plugin_of_the_page_in_a_fresh_environment(tmp_path: Path) -> None:
    page = ROOT / "docs" / "plugins.md"
    package = tmp_path / "package"
    package.mkdir()
    code, control, tests = blocks(page, "python")
    (package / "reelfs_chapters.py").write_text(f"{code.body}\n\n{control.body}")
    (package / "pyproject.toml").write_text(blocks(page, "toml")[0].body)
    (package / "test_chapters.py").write_text(tests.body)
    fresh = Environment(tmp_path / "fresh")
    fresh.install(package)
    listed = fresh.run("-m", "vfs.cli", "plugins").stdout
    assert "chapters\t1.0\treelfs-chapters\treelfs_chapters\tloaded" in listed
    shown = fresh.run("-m", "vfs.cli", "cat", library(tmp_path), "games/a.mp4@/chapters.vtt")
    point = tmp_path / "mnt"
    point.mkdir()
    if can_mount():
        mounting = fresh.run("-m", "vfs.cli", "mount", tmp_path / "library", point)
        assert mounting.returncode == 0, mounting.stderr
        try:
            asking = f"import reelfs_chapters; print(reelfs_chapters.files_of({str(point)!r}))"
            assert fresh.run("-c", asking).stdout == "2\n"
        finally:
            mounts.unmount(point, lazy=True)
    assert shown.stdout.startswith("WEBVTT\n\n00:00:00.000 --> 00:01:05.500\nKick-off\n"), shown.stderr


def test_a_new_plugin_works_and_its_test_passes(tmp_path: Path) -> None:
    made = subprocess.run(
        [sys.executable, "-m", "vfs.cli", "plugin", "new", "box_scores", "--into", str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert made.stdout.count("wrote ") == 4
    package = tmp_path / "reelfs-box-scores"
    fresh = Environment(tmp_path / "fresh")
    fresh.install(package)
    shown = fresh.run("-m", "vfs.cli", "cat", library(tmp_path), "games/a.mp4@/box_scores.txt")
    assert shown.stdout == "a.mp4: 256 bytes, beginning with 000102030405060708090a0b0c0d0e0f\n", shown.stderr
    tested = fresh.run("-m", "pytest", "-q", "-p", "no:cacheprovider", cwd=package)
    assert tested.returncode == 0, tested.stdout


@pytest.mark.parametrize("name", ["", "Upper", "a-b", "class", "1a", "../x", "x" * 50])
def test_a_name_that_is_none_of_a_module_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        pluginskeleton.new(name, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "reelfs-scores").mkdir()
    with pytest.raises(ConfigError, match="exists already"):
        pluginskeleton.new("scores", tmp_path)
