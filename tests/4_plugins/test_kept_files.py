"""What `ls -l` of a companion folder makes is made once a version, not once a mount."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

import mp4_exact as exact  # noqa: E402
from mp4_library import Remote  # noqa: E402

from vfs import Bytes, Settings, open_runtime  # noqa: E402
from vfs.workers import jobs  # noqa: E402

#: What is listed and takes a worker to make.
LISTED = ("thumbnail.png", "waveform.png", "storyboard.jpg")


@pytest.fixture
def library(tmp_path: Path) -> Path:
    folder = tmp_path / "library"
    (folder / "games").mkdir(parents=True)
    exact.encode(folder / "games" / "x.mp4", frames=90, size=(160, 90))
    return folder


def sizes(library: Path, cache: Path | None) -> tuple[dict[str, int], int, int]:
    """(size of each listed picture, jobs of workers, bytes read) of one mount's `ls -l`."""

    async def main() -> tuple[dict[str, int], int, int]:
        store = Remote(library)
        given = {"source": str(library), "cache_dir": str(cache) if cache else "none"}
        before = jobs["ok"]
        async with open_runtime(Settings.load(given, environ={}), store=store) as runtime:
            folder = await runtime.tree.resolve("games/x.mp4@")
            found = {}
            for name in await runtime.tree.entries(folder):
                entry = await runtime.tree.lookup(folder, name)
                if isinstance(entry.node, Bytes) and name in LISTED:
                    found[name] = len(await runtime.tree.settle(entry))
        return found, jobs["ok"] - before, sum(length for _, _, length in store.reads)

    return trio.run(main)


def test_the_second_mount_makes_nothing(library: Path, tmp_path: Path) -> None:
    first, made, read = sizes(library, tmp_path / "cache")
    assert set(first) == set(LISTED)
    assert made >= 3
    again, made_again, read_again = sizes(library, tmp_path / "cache")
    assert (again, made_again) == (first, 0)
    assert read_again < read / 2


def test_another_version_is_made_anew(library: Path, tmp_path: Path) -> None:
    first, _, _ = sizes(library, tmp_path / "cache")
    exact.encode(library / "games" / "x.mp4", frames=60, size=(320, 180), bframes=0)
    other, made, _ = sizes(library, tmp_path / "cache")
    assert made >= 3
    assert other != first


def test_without_a_cache_folder_each_mount_makes_them(library: Path) -> None:
    first, _, _ = sizes(library, None)
    again, made, _ = sizes(library, None)
    assert again == first
    assert made >= 3
