"""Real mounts for programs to use: made and ended by the commands, each with a home of its own."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from tests.logs import troubles
from vfs.mounts import mount_at, unmount

ROOT = Path(__file__).resolve().parents[2]
SHARED = ROOT.parent / "shared" / "media"

sys.path[:0] = [str(ROOT / "scripts")]
sample_media = importlib.import_module("sample_media")
encode: Callable[..., Path] = sample_media.encode
sidecars: Callable[[Path], tuple[Path, Path]] = sample_media.sidecars

#: Chooses the slice of the cases that runs without --slow: another one every day, the same for a day.
SEED = int(os.environ.get("CLIENTS_SEED") or time.time() // 86_400)

#: Generated videos by name, each with what is special about it. Small: what is tried is times, not pixels.
VIDEOS: dict[str, dict[str, Any]] = {
    "h264": {"frames": 150},
    "hevc": {"codec": "libx265"},
    "moov at end": {"faststart": False},
    "fragmented": {"fragmented": True},
    "fragmented sidecar": {"fragmented": True},
    "hevc fragmented sidecar": {"codec": "libx265", "fragmented": True},
    "hevc open gop": {"codec": "libx265", "open_gop": True, "bframes": 3},
    "vfr": {"vfr": True},
    "turned": {"rotation": 90, "audio": False},
    "trimmed": {"trim": Fraction(1, 2)},
    "delayed": {"delay": Fraction(1, 5)},
    "opus": {"audio_codec": "libopus"},
    "ntsc": {"fps": Fraction(30000, 1001)},
}


@dataclass(frozen=True)
class Mount:
    """A mount at `path` of the folder `source`; `log` is what its daemon writes."""

    path: Path
    source: Path
    log: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def status(self) -> dict[str, Any]:
        """What the daemon tells of itself now."""
        told: dict[str, Any] = json.loads((self.path / ".reelfs" / "status.json").read_bytes())
        return told

    def trouble(self, expected: Sequence[str] = ()) -> list[str]:
        """Lines of the log that should not be there. expected: patterns of those that may."""
        found = troubles(self.log.read_text(errors="replace"))
        return [line for line in found if not any(re.search(pattern, line) for pattern in expected)]


def reelfs(
    home: Path, *arguments: str | Path, environ: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """A command, with no settings of the machine's own. environ: of a store, beside home and path."""
    return subprocess.run(
        [sys.executable, "-m", "vfs.cli", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={"HOME": str(home), "PATH": os.environ["PATH"], **(environ or {})},
        timeout=60,
        check=False,
    )


@contextmanager
def mounted(
    folder: Path,
    source: Path | str,
    *flags: str,
    expected: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Iterator[Mount]:
    """`source` mounted below `folder`, then unmounted; the log must hold no trouble but `expected`."""
    point, log = folder / "my mount", folder / "log"
    point.mkdir()
    done = reelfs(folder, "mount", source, point, "-o", f"log_file={log}", *flags, environ=environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    mount = Mount(point, Path(source), log)
    try:
        yield mount
        done = reelfs(folder, "umount", point, environ=environ)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    finally:
        # A failure must leave no mount behind.
        if mount_at(point) is not None:
            unmount(point, lazy=True)
    assert mount.trouble(expected) == []


def make_library(folder: Path) -> Path:
    """The generated videos under `games/`, and files that are no video."""
    games = folder / "games"
    games.mkdir(parents=True)
    for name, options in VIDEOS.items():
        path = encode(games / f"{name}.mp4", **{"frames": 90, "size": (160, 90), **options})
        if "sidecar" in name:
            sidecars(path)
    (folder / "notes.txt").write_text("kick off at 15:00\nhalf time 1:0\n")
    (folder / "empty").touch()
    deep = folder / "a" / "b b" / "ü 🎬"
    deep.mkdir(parents=True)
    (deep / "random.bin").write_bytes(os.urandom(3_000_001))
    return folder


def some(names: Iterable[str], choices: Sequence[str], count: int) -> list[Any]:
    """All pairs of a name and a choice as parameters, all but `count` of each name only with --slow."""
    found = []
    for name in names:
        daily = random.Random(f"{SEED} {name}").sample(choices, min(count, len(choices)))
        found += [pytest.param(name, c, marks=() if c in daily else pytest.mark.slow) for c in choices]
    return found
