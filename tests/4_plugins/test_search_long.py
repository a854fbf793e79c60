"""A game of ninety minutes: indexed in bounded memory, and a moment of it is found where it is.

A minute of it by default, the whole with --slow.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import trio

sys.path.insert(0, str(Path(__file__).parent))

from search_media import make, transform
from vfs_search import fast
from vfs_search.catalog import Catalog

from vfs import Settings, open_runtime

#: Seconds of a piece. All but one come again and again; that one is what is looked for.
PIECE = 10
COMMON, ONCE = (0, 1, 2), 9
#: Bytes that the largest process of the index command may take.
MOST_MEMORY = 500 << 20


def game(folder: Path, minutes: int) -> tuple[Path, float]:
    """A game of pieces, joined without encoding, and where in it the one is that there is once."""
    pieces = {n: make(folder / f"piece{n}.mp4", n, seconds=PIECE, size=(256, 144)) for n in (*COMMON, ONCE)}
    count = minutes * 60 // PIECE
    place = count * 2 // 3
    order = [ONCE if n == place else COMMON[n % len(COMMON)] for n in range(count)]
    (folder / "list.txt").write_text("".join(f"file '{pieces[n]}'\n" for n in order))
    target = folder / "library/game.mp4"
    target.parent.mkdir()
    command = [
        "ffmpeg",
        "-v",
        "error",
        "-f",
        "concat",
        "-safe",
        "0",
        "-i",
        str(folder / "list.txt"),
        "-c",
        "copy",
    ]
    done = subprocess.run([*command, str(target)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    length = float(
        subprocess.run(
            ["ffprobe", "-v", "error", "-show_entries", "format=duration", "-of", "csv=p=0", str(target)],
            capture_output=True, text=True, check=True,
        ).stdout
    )  # fmt: skip
    return target, place * length / count


INDEX = """
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024)
sys.exit(done.returncode)
"""


@pytest.mark.parametrize("minutes", [1, pytest.param(90, marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def test_a_moment_of_a_long_game(tmp_path: Path, minutes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path, where = game(tmp_path, minutes)
    looks = (
        "-ss",
        f"{where + 2:.3f}",
        "-t",
        "5",
        "-vf",
        "hflip,eq=brightness=0.06",
        "-an",
        "-preset",
        "ultrafast",
    )
    transform(path, path.with_name("query.mp4"), *looks)
    home = tmp_path / "home"
    home.mkdir()
    command = [sys.executable, "-m", "vfs.cli", "index", "--only", "search", "--jobs", "1", str(path.parent)]
    environ = {"HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(
        [sys.executable, "-c", INDEX, *command], env=environ, capture_output=True, text=True, timeout=500
    )
    assert (done.returncode, done.stderr) == (0, "")
    *lines, memory = done.stdout.splitlines()
    assert int(memory) <= MOST_MEMORY
    (told,) = [line for line in lines if "game.mp4" in line]
    pictures = int(told.partition(": ")[2].split()[0])
    assert abs(pictures / (minutes * 60 * 2) - 1) < 0.02, told

    monkeypatch.setenv("HOME", str(home))

    async def ask() -> None:
        settings = Settings.load({"source": str(path.parent)}, environ={"HOME": str(home)})
        async with open_runtime(settings) as runtime:
            for question in ("clip/query.mp4@0s-5s", "frame/query.mp4@2s"):
                found = await runtime.tree.resolve(f"search/{question}/in:game.mp4/@/results.json")
                rows = json.loads(await runtime.tree.settle(found))["results"]
                assert rows, question
                assert rows[0]["mirrored"] == "yes"

                assert abs(rows[0]["start"] - (where + 2)) < 0.6, question

    trio.run(ask)
    (folder,) = (home / ".cache/reelfs/search").iterdir()
    catalog = Catalog(folder)
    snapshot = catalog.snapshot()
    catalog.close()
    rows = len(snapshot.columns["grad512"])
    assert rows >= 12 * pictures
    assert (snapshot.lists is not None) == (fast.installed() and rows >= fast.LEAST)
