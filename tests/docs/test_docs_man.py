"""man/ is what the command line says, and completions answer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.doc_pages import ROOT
from vfs import manpage
from vfs.config import Settings


def test_the_pages_are_up_to_date(tmp_path: Path) -> None:
    """`python -m tests.docs.doc_tables` makes them anew."""
    manpage.write(tmp_path)
    for page in ("reelfs.1", "mount.reelfs.8"):
        assert (ROOT / "man" / page).read_text() == (tmp_path / page).read_text()


def test_every_command_and_setting_is_there() -> None:
    text = manpage.reelfs_page()
    for name in ("mount", "top", "warm", "service install", "plugin new", "doctor"):
        assert f".SS reelfs {name}" in text
    for option in Settings.describe():
        assert f"\\fB{manpage.escaped(option.key)}\\fR" in text


@pytest.mark.skipif(
    shutil.which("man") is None or shutil.which("groff") is None, reason="man is not installed"
)
@pytest.mark.parametrize("page", ["reelfs.1", "mount.reelfs.8"])
def test_man_has_nothing_to_say_against_them(page: str) -> None:
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", str(ROOT / "man" / page)],
        capture_output=True,
        text=True,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "MANROFFSEQ": ""},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    command = [sys.executable, "-m", "vfs.cli"]
    script = subprocess.run(
        [*command, "completion", shell], capture_output=True, text=True, check=True
    ).stdout
    assert "_REELFS_COMPLETE" in script
    if shell != "bash":
        return
    asked = {**os.environ, "_REELFS_COMPLETE": "complete_bash", "COMP_WORDS": "reelfs re", "COMP_CWORD": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=asked, check=False).stdout
    assert "refresh" in found.split()
