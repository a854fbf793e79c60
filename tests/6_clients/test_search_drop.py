"""`search/drop/` and `search/saved/` by cp, mkdir and rm on a real mount; `reelfs search` without one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client_mounts import Mount, mounted, reelfs
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "4_plugins"))

from search_media import make, scene


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Path, Path]]:
    """A mount that can be written to, of an indexed library of two scenes; its home, and a folder."""
    home = tmp_path_factory.mktemp("drop")
    library = home / "library"
    for seed in range(2):
        make(library / f"{seed}.mp4", seed, seconds=4)
    done = reelfs(home, "index", "--only", "search", "--jobs", "1", library)
    assert (done.returncode, done.stderr) == (0, "")
    with mounted(home, library, "--read-write", expected=[r"search/drop/\w+\.\w+\.results"]) as mount:
        yield mount, home, library


def picture(path: Path, seed: int) -> Path:
    Image.fromarray(scene(seed, 320, 180, 2.0)).save(path)
    return path


def ended(mount: Mount) -> int:
    """Jobs that workers have done by now."""
    jobs: dict[str, int] = mount.status()["counters"]["worker_jobs"]
    return sum(jobs.values())


def found(folder: Path) -> list[str]:
    """Sources of the results, best first."""
    return [row["source"] for row in json.loads((folder / "results.json").read_bytes())["results"]]


@pytest.mark.fuse
def test_a_picture_that_is_dropped_is_looked_for(searched: tuple[Mount, Path, Path], tmp_path: Path) -> None:
    """cp, read it back, its results, cp over it, rm; nothing of it comes to the library."""
    mount, _, library = searched
    before, jobs = sorted(os.listdir(library)), ended(mount)
    query = picture(tmp_path / "query.png", 1)
    subprocess.run(["cp", query, mount / "search/drop/"], check=True)
    assert os.listdir(mount / "search/drop") == ["query.png"]
    assert (mount / "search/drop/query.png").read_bytes() == query.read_bytes()
    until = time.monotonic() + 30
    while ended(mount) == jobs:  # it is looked at when it is closed, not when somebody asks
        assert time.monotonic() < until
    results, jobs = mount / "search/drop/query.png.results/@", ended(mount)
    assert found(results)[0] == "1.mp4"
    assert any(name.endswith(".mp4") for name in os.listdir(results))
    assert ended(mount) == jobs, "listing decodes nothing"
    subprocess.run(["cp", picture(query, 0), mount / "search/drop/"], check=True)
    assert found(results)[0] == "0.mp4"
    os.unlink(mount / "search/drop/query.png")
    assert os.listdir(mount / "search/drop") == []
    assert not os.path.exists(results)
    assert sorted(os.listdir(library)) == before


@pytest.mark.fuse
def test_what_is_no_picture_fails_alone(searched: tuple[Mount, Path, Path], tmp_path: Path) -> None:
    """Text called .mp4, noise called .png, a bomb, a name that cannot be: an error each, the next works."""
    mount, _, _ = searched
    drop = mount / "search/drop"
    bomb = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(bomb)
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "noise.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100))
    for name in ("text.mp4", "noise.png", "bomb.png"):
        shutil.copyfile(tmp_path / name, drop / name)
        with pytest.raises(OSError) as raised:
            os.listdir(drop / f"{name}.results/@")
        assert raised.value.errno in (errno.EIO, errno.ENODATA, errno.EFBIG), name
    with pytest.raises(OSError) as raised:
        (drop / ".hidden").write_bytes(b"x")
    assert raised.value.errno == errno.EINVAL
    shutil.copyfile(picture(tmp_path / "good.png", 1), drop / "good.png")
    assert found(drop / "good.png.results/@")[0] == "1.mp4"
    for name in os.listdir(drop):
        os.unlink(drop / name)


@pytest.mark.fuse
def test_a_question_is_saved_by_mkdir(searched: tuple[Mount, Path, Path]) -> None:
    mount, _, _ = searched
    saved = mount / "search/saved"
    os.mkdir(saved / "again")
    assert os.listdir(saved) == ["again"]
    assert (saved / "again/.query").read_text() == "text/again\n"
    (saved / "again/.query").write_text("frame/0.mp4@2s/limit:3\n")
    assert (saved / "again/.query").read_text() == "frame/0.mp4@2s/limit:3\n"
    first = found(saved / "again/@")
    assert first
    assert b"asks again" in (saved / "again/.refresh").read_bytes()
    assert found(saved / "again/@") == first
    (saved / "again/.query").write_text("nonsense\n")
    with pytest.raises(OSError) as raised:
        os.listdir(saved / "again/@")
    assert raised.value.errno == errno.EINVAL
    os.rmdir(saved / "again")
    assert os.listdir(saved) == []
    with pytest.raises(OSError) as raised:
        os.mkdir(mount / "search/x")
    assert raised.value.errno == errno.EROFS


@pytest.mark.fuse
def test_a_mount_that_is_read_only_takes_nothing(searched: tuple[Mount, Path, Path], tmp_path: Path) -> None:
    _, _, library = searched
    with mounted(tmp_path, library) as mount:
        with pytest.raises(OSError) as raised:
            (mount / "search/drop/x").write_bytes(b"")
        assert raised.value.errno == errno.EROFS
        with pytest.raises(OSError) as raised:
            os.mkdir(mount / "search/saved/x")
        assert raised.value.errno == errno.EROFS


def test_the_command_line_searches_without_a_mount(
    searched: tuple[Mount, Path, Path], tmp_path: Path
) -> None:
    _, home, library = searched
    done = reelfs(home, "search", library, "--image", picture(tmp_path / "q.jpg", 0))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0].split()[-1].startswith("0.mp4@")
    # Also with the settings of the mount that has the journal.
    done = reelfs(home, "search", library, "frame/1.mp4@1s", "--json", "-o", "read_write=true")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["status"]["indexed"] == 2
    for arguments, words in (
        ((library, "nonsense"), "text/TERMS"),
        ((library, "text/colour:red"), "is no field"),
        ((library,), "QUERY, or --image FILE"),
        ((library, "--image", tmp_path / "gone.png"), "there is no file"),
    ):
        done = reelfs(home, "search", *arguments)
        assert done.returncode != 0
        assert words in done.stderr
        assert len(done.stderr.splitlines()) == 1
