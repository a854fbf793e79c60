"""Real programs use a mount as a disk: version control, copying, archives, databases, editors, encoders."""

from __future__ import annotations

import filecmp
import os
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers import R2, r2_server
from tests.writes import WrittenMount, written

pytestmark = pytest.mark.fuse


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as made:
        made.fill("programs", {})
        yield made


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory, server: R2) -> Iterator[WrittenMount]:
    options = ("write.fsync=local", "write.max_deletes_per_minute=0", "write.trash_ttl=0")
    with written(tmp_path_factory.mktemp("drive"), "r2://programs", server.environ, *options) as made:
        yield made


@pytest.fixture
def here(drive: WrittenMount, request: pytest.FixtureRequest) -> Path:
    folder = drive / str(request.node.name)
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds to copy."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "a/deep/er").mkdir(parents=True)
    (folder / "empty folder").mkdir()
    (folder / "big.bin").write_bytes(os.urandom(3_000_000))
    (folder / "a/ü 🎬.txt").write_text("name\n")
    (folder / "a/deep/er/empty").touch()
    (folder / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("a/deep")
    os.utime(folder / "big.bin", ns=(0, 1_500_000_000_000_000_000))
    return folder


def run(*command: str | Path, cwd: Path | None = None, environ: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        list(map(str, command)),
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **(environ or {})},
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout


def same(one: Path, other: Path) -> None:
    compared = filecmp.dircmp(one, other)
    assert (compared.left_only, compared.right_only, compared.diff_files) == ([], [], [])
    for name in compared.common_dirs:
        same(one / name, other / name)


GIT = {
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@example.org",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@example.org",
    "GIT_CONFIG_GLOBAL": os.devnull,
}


def test_git(here: Path, tmp_path: Path) -> None:
    def git(*words: str | Path, cwd: Path = here / "repo") -> str:
        return run("git", *words, cwd=cwd, environ=GIT)

    git("init", "-q", "-b", "main", here / "repo", cwd=here)
    for number in range(5):
        (here / "repo" / f"f{number}").write_text(f"{number}\n" * 1000)
        git("add", ".")
        git("commit", "-q", "-m", f"c{number}")
    git("checkout", "-q", "-b", "side", "HEAD~2")
    git("mv", "f0", "moved")
    git("commit", "-q", "-m", "moved")
    git("checkout", "-q", "main")
    git("merge", "-q", "side")
    git("gc", "-q")
    git("fsck", "--strict")
    assert git("status", "--porcelain") == ""
    git("clone", "-q", here / "repo", here / "clone", cwd=here)
    git("clone", "-q", here / "repo", tmp_path / "clone", cwd=here)
    assert (tmp_path / "clone/moved").read_text() == "0\n" * 1000
    assert git("rev-parse", "HEAD", cwd=here / "clone") == git("rev-parse", "HEAD")


def test_rsync_twice(here: Path, files: Path) -> None:
    run("rsync", "-a", f"{files}/", here / "copy")
    same(files, here / "copy")
    assert run("rsync", "-a", "--itemize-changes", f"{files}/", here / "copy") == ""
    assert run("rsync", "-a", "-c", "--itemize-changes", f"{files}/", here / "copy") == ""
    assert run(here / "copy/run.sh") == "ran\n"


def test_tar_and_cp(here: Path, files: Path) -> None:
    run("tar", "cf", here / "all.tar", "-C", files, ".")
    (here / "out").mkdir()
    run("tar", "xf", here / "all.tar", "-C", here / "out")
    same(files, here / "out")
    with tarfile.open(here / "all.tar") as archive:
        assert "./big.bin" in archive.getnames()
    run("cp", "-a", files, here / "cp")
    same(files, here / "cp")
    assert (here / "cp/big.bin").stat().st_mtime_ns == 1_500_000_000_000_000_000
    run("cmp", files / "big.bin", here / "cp/big.bin")
    run("rm", "-rf", here / "cp", here / "out")
    assert [p.name for p in here.iterdir()] == ["all.tar"]


def test_editors_replace_by_rename(here: Path) -> None:
    (here / "a.txt").write_text("one two\n")
    run("sed", "-i", "s/one/1/", here / "a.txt")
    run("sed", "-i.bak", "s/two/2/", here / "a.txt")
    assert (here / "a.txt").read_text() == "1 2\n"
    assert (here / "a.txt.bak").read_text() == "1 two\n"
    # vim: the old file is moved aside, the new one written, the old one removed.
    (here / "a.txt").rename(here / "a.txt~")
    (here / "a.txt").write_text("new\n")
    (here / "a.txt~").unlink()
    assert (here / "a.txt").read_text() == "new\n"


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_sqlite(here: Path, mode: str) -> None:
    script = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
for number in range(40):
    with db:
        db.execute("INSERT INTO t VALUES (?, ?)", (int(sys.argv[2]), number))
db.close()
"""
    path = here / "a.sqlite"
    db = sqlite3.connect(path)
    assert db.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
    db.execute("CREATE TABLE t (writer, number)")
    db.commit()
    db.close()
    writers = [
        subprocess.Popen([sys.executable, "-c", script, str(path), str(number)]) for number in range(3)
    ]
    assert [writer.wait(100) for writer in writers] == [0, 0, 0]
    db = sqlite3.connect(path)
    assert db.execute("SELECT count(*), count(DISTINCT writer) FROM t").fetchone() == (120, 3)
    assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


def test_ffmpeg_writes_an_mp4_with_its_index_in_front(here: Path) -> None:
    video = here / "v.mp4"
    source = ("-f", "lavfi", "-i", "testsrc=duration=2:size=160x120:rate=25")
    run("ffmpeg", "-v", "error", *source, "-movflags", "+faststart", "-y", video)
    told = run("ffprobe", "-v", "error", "-count_frames", "-show_entries", "stream=nb_read_frames", video)
    assert "nb_read_frames=50" in told
    assert (here / "v@1s.jpg").read_bytes()[:2] == b"\xff\xd8"


#: Tests of CPython with names that are not UTF-8: no key can carry them, and the mount says so.
CPYTHON_WITHOUT = ("*Pep383Tests*", "*undecodable*")


@pytest.mark.slow
@pytest.mark.parametrize("module", ["test_os", "test_shutil", "test_mmap", "test_sqlite3", "test_tempfile"])
def test_the_tests_of_python_itself(here: Path, drive: WrittenMount, module: str) -> None:
    drive.expect_log("room for 8192 bytes of attributes")
    skipped = [word for name in CPYTHON_WITHOUT for word in ("-i", name)]
    command = [sys.executable, "-m", "test", "--tempdir", str(here), *skipped, module]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "TMPDIR": str(here)})
    assert done.returncode in (0, 4), done.stdout[-5000:]


@pytest.mark.parametrize("how", ["write", "randwrite", "mmap"])
def test_fio_verifies_what_it_wrote(here: Path, how: str) -> None:
    options = {
        "write": ("--rw=write", "--bs=128k"),
        "randwrite": ("--rw=randwrite", "--bs=4k"),
        "mmap": ("--rw=randwrite", "--bs=4k", "--ioengine=mmap"),
    }[how]
    common = ("--name=v", "--size=8m", "--verify=crc32c", "--fallocate=none", f"--directory={here}")
    run("fio", *common, *options, cwd=here)


#: File stressors of stress-ng with what keeps each small; all that ext4 passes here are named.
STRESSORS = (
    *("hdd --hdd-bytes 8m", "access", "chmod", "chown", "dentry --dentries 64", "dir --dir-dirs 64"),
    *("fstat", "rename", "symlink", "utime", "filename", "xattr", "seek --seek-size 4m", "flock", "lockf"),
    *("fallocate --fallocate-bytes 4m", "open", "touch", "readahead --readahead-bytes 4m"),
    "mmap --mmap-bytes 4m --mmap-file",
)


@pytest.mark.parametrize(
    "stressor",
    [
        pytest.param(s, marks=() if s in ("rename", "dentry --dentries 64") else pytest.mark.slow)
        for s in STRESSORS
    ],
)
def test_stress_ng(here: Path, drive: WrittenMount, stressor: str) -> None:
    drive.expect_log("room for 8192 bytes of attributes")
    name, *options = stressor.split()
    run("stress-ng", "--temp-path", here, f"--{name}", "1", *options, "--timeout", "2", "--verify", cwd=here)
