"""The command line as processes: what it prints, its exit codes, its one-line errors."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from vfs import cli
from vfs.config import Settings
from vfs.terminal import EXIT_BROKEN_PIPE

#: No user's configuration, and none of the plugins that take long to load: they have tests of their own.
NO_CONFIG: Mapping[str, str] = {
    "HOME": "/nonexistent",
    "PATH": os.environ["PATH"],
    "REELFS_PLUGINS_BLOCK": "mp4",
}


def reelfs(
    *arguments: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vfs.cli", *map(str, arguments)],
        capture_output=True,
        env={**NO_CONFIG, **(env or {})},
        cwd=cwd,
        timeout=60,
        check=False,
    )


def error_of(done: subprocess.CompletedProcess[bytes], code: int) -> str:
    """The one line on stderr of a command that failed as it should."""
    text = done.stderr.decode()
    assert done.returncode == code, text
    assert done.stdout == b""
    assert "Traceback" not in text
    lines = text.splitlines()
    assert len(lines) == 1, text
    assert lines[0].startswith("reelfs: ")
    return lines[0]


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A folder with a few files, some of odd names."""
    folder = tmp_path / "library"
    (folder / "games").mkdir(parents=True)
    (folder / "games" / "notes.txt").write_bytes(b"kick off\n" * 300_000)
    (folder / "empty").write_bytes(b"")
    (folder / "two words.txt").write_bytes(b"x")
    (folder / os.fsdecode(b"latin-\xe9.txt")).write_bytes(b"y")
    return folder


# -- no mount at all ----------------------------------------------------------------------------------------


def test_ls_of_a_folder_without_a_mount(library: Path) -> None:
    done = reelfs("ls", library, "/")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        *(b"empty", b"games/", b"latin-\xe9.txt", b"search/", b"two words.txt")
    ]
    assert reelfs("ls", library, "games/").stdout == b"notes.txt\n"
    assert reelfs("ls", library, "games/notes.txt").stdout == b"notes.txt\n"


def test_ls_long_and_json(library: Path) -> None:
    long = reelfs("ls", "-l", library, "games").stdout.decode().split()
    assert (long[0], long[1], long[-1]) == ("file", "2700000", "notes.txt")
    entries = json.loads(reelfs("ls", "--json", library, "").stdout)
    assert [e["kind"] for e in entries] == ["file", "folder", "file", "folder", "file"]


def test_cat_gives_the_bytes(library: Path) -> None:
    done = reelfs("cat", library, "games/notes.txt")
    assert done.returncode == 0, done.stderr
    assert done.stdout == b"kick off\n" * 300_000
    assert reelfs("cat", f"file://{library}", "two words.txt").stdout == b"x"
    empty = reelfs("cat", library, "empty")
    assert (empty.returncode, empty.stdout, empty.stderr) == (0, b"", b"")


def test_cat_into_a_pipe_that_closes_says_nothing(library: Path) -> None:
    command = [sys.executable, "-m", "vfs.cli", "cat", str(library), "games/notes.txt"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=NO_CONFIG) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(5) == b"kick "
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == EXIT_BROKEN_PIPE


def test_stat_tells_size_and_attributes(library: Path) -> None:
    found = json.loads(reelfs("stat", "--json", library, "games/notes.txt").stdout)
    assert (found["size"], found["kind"], found["name"]) == (2_700_000, "file", "notes.txt")
    assert found["attributes"]["key"] == "games/notes.txt"
    assert found["attributes"]["etag"]
    lines = reelfs("stat", library, "games/notes.txt").stdout.decode().splitlines()
    told = dict(line.split(maxsplit=1) for line in lines)
    assert (told["size"], told["user.reelfs.key"]) == ("2700000", "games/notes.txt")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d", told["mtime"])
    assert len({line.index(line.split(maxsplit=1)[1]) for line in lines}) == 1  # in columns


def test_explain_says_what_would_be_read(library: Path) -> None:
    text = reelfs("explain", library, "games/notes.txt").stdout.decode()
    assert "games/notes.txt" in text
    assert "2,700,000 bytes" in text
    assert "free" in text
    found = json.loads(reelfs("explain", "--json", library, "games/notes.txt").stdout)
    assert found["path"] == ["games/notes.txt"]
    assert found["kind"] == ["stored file"]


def test_status_files_need_no_mount_either(library: Path) -> None:
    found = json.loads(reelfs("cat", library, ".reelfs/status.json").stdout)
    assert found["source"] == str(library)
    assert reelfs("cat", library, ".raw/two words.txt").stdout == b"x"
    size = json.loads(reelfs("stat", "--json", library, ".reelfs/config.toml").stdout)["size"]
    assert size > 100


def test_what_is_not_there_is_one_line(library: Path) -> None:
    assert "nothing.mp4" in error_of(reelfs("cat", library, "games/nothing.mp4"), 1)
    assert "not a file" in error_of(reelfs("cat", library, "games"), 1)
    assert "no such folder" in error_of(reelfs("ls", library / "gone", ""), 1)


# -- errors before anything is opened -----------------------------------------------------------------------


def test_no_arguments_is_help() -> None:
    done = reelfs()
    assert done.returncode == 0
    assert b"mount" in done.stdout
    assert b"doctor" in done.stdout


def test_usage_errors_exit_2() -> None:
    assert "frobnicate" in error_of(reelfs("frobnicate"), 2)
    assert "--bogus" in error_of(reelfs("ls", "--bogus"), 2)
    assert "PATH" in error_of(reelfs("ls"), 2)


def test_a_wrong_setting_names_where_it_was_given(tmp_path: Path, library: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text('memory = "plenty"')
    assert f"{config}: memory: " in error_of(reelfs("mount", library, tmp_path, "--config", config), 2)
    line = error_of(reelfs("mount", library, tmp_path, "--memory", "1KiB"), 2)
    assert "command line: --memory: " in line
    line = error_of(reelfs("ls", library, "", env={"REELFS_MEMROY": "1GiB"}), 2)
    assert "REELFS_MEMROY is no setting; did you mean REELFS_MEMORY?" in line
    line = error_of(reelfs("ls", library, "", "-o", "memory=0x"), 2)
    assert "command line: -o memory: " in line


def test_a_single_path_must_be_on_a_mount(library: Path) -> None:
    for command in ("ls", "stat", "cat", "explain"):
        assert "is not on a reelfs mount" in error_of(reelfs(command, library), 2)


def test_mount_says_what_is_wrong_before_it_starts_anything(tmp_path: Path, library: Path) -> None:
    point = tmp_path / "m"
    assert "does not exist: run `mkdir -p" in error_of(reelfs("mount", library, point), 2)
    point.mkdir()
    assert "no such folder" in error_of(reelfs("mount", tmp_path / "gone", point), 2)
    assert "MOUNTPOINT is missing" in error_of(reelfs("mount", library), 2)
    assert "SOURCE is missing" in error_of(reelfs("mount"), 2)
    assert "is not empty" in error_of(reelfs("mount", library, library), 2)
    file = tmp_path / "file"
    file.touch()
    assert "is not a folder" in error_of(reelfs("mount", library, file), 2)
    assert "is not a folder" in error_of(reelfs("mount", file, point), 2)


def test_umount_of_what_is_not_mounted(tmp_path: Path) -> None:
    assert "is not a reelfs mount" in error_of(reelfs("umount", tmp_path), 1)


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = reelfs("umount", tmp_path, env={"REELFS_DEBUG": "1"})
    assert done.returncode == 1
    assert b"Traceback" in done.stderr


def test_plugins_are_listed_with_their_state() -> None:
    rows = {row["name"]: row for row in json.loads(reelfs("plugins", "--json").stdout)}
    assert rows["control"]["state"] == "loaded"
    assert rows["control"]["module"] == "vfs_control.plugin"
    blocked = reelfs("plugins", "-o", "plugins.block=control").stdout.decode().splitlines()
    assert [line.split("\t")[-1] for line in blocked if line.startswith("control\t")] == ["blocked"]


def test_help_does_not_need_a_sound_configuration(tmp_path: Path) -> None:
    assert reelfs("--help", env={"REELFS_CONFIG": str(tmp_path / "gone")}).returncode == 0


def test_the_command_line_itself_is_light() -> None:
    """`reelfs mount` must not pay for what it does not use."""
    heavy = "{'boto3', 'botocore', 'numpy', 'av', 'rich', 'trio', 'pydantic', 'prometheus_client'}"
    code = f"import sys, vfs.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_every_option_of_mount_is_a_setting() -> None:
    """So it can be given in the file and the environment, too (tests/0_pure/test_config.py tries each)."""
    rows = {option.key: option for option in Settings.describe()}
    options = set(inspect.signature(cli.mount).parameters) - {"config", "options"}
    assert {"source", "mountpoint", "cache_dir", "memory", "read_write", "umask"} < options
    for name in options:
        assert rows[name].env == f"REELFS_{name.upper()}"
        assert rows[name].flag in (f"--{name.replace('_', '-')}", name.upper(), "--read-write / --read-only")
