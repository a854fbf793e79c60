#!/usr/bin/env python3
"""Check videos against full decodes, write docs/fidelity.md: `python tests/6_clients/fidelity_page.py`.

The real media beside the checkout and generated files, through a real mount. Full decodes are kept below
`~/.cache/reelfs-fidelity` (`FIDELITY_DIR` names another folder), so that a second run takes minutes.
`--only NAME` tries some files and writes nothing; `--update` writes the page from a run over everything. One
that was broken off is gone on with by `--resume`: what was found by the same code is not tried again.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "4_plugins"), str(ROOT)]

import av  # noqa: E402
from client_mounts import SHARED, encode  # noqa: E402
from fidelity import ENCRYPTED, RANGES, Case, Found, Truths, check, damaged, version_of  # noqa: E402
from mp4_exact import SAMPLES  # noqa: E402

from tests.bench.mounted import Mounted, reelfs  # noqa: E402

PAGE = ROOT / "docs" / "fidelity.md"
FRAMES = 110
#: Files that are not as they should be: tried with what they must survive.
DAMAGED = "derived__"

_CONCEALED = (
    "the stream is damaged, and what a decoder makes up for a broken picture depends on what came before"
)
_OPEN_GROUP = (
    "ffmpeg 5.1 loses leading pictures of any cut, its own too, that begins in an open group of pictures;"
    " PyAV's FFmpeg shows them"
)
_BROKEN = (
    "the stored picture at 0.868 s does not decode (no table tells of it); a player that comes from before"
    " goes on showing the picture before it"
)
_AV1 = "ffmpeg 5.1 shows the frames of AV1 that an edit list hides; PyAV's FFmpeg does not"

#: What is known not to be as it should be, by file and check, and why. Nothing else may differ.
KNOWN: dict[str, dict[str, str]] = {
    "decord_corrupted.mp4": {
        "instants": _CONCEALED,
        "fragments": _CONCEALED,
    },
    "go-mp4_sample_qt.mp4": {
        "pictures": "the file was cut to its first bytes: its tables tell of media that is not there",
        "reads": "the same: what is not there answers with an input/output error",
    },
    "media_iibbibb_editlist_videoonly.mp4": {"ffmpeg": _OPEN_GROUP},
    "media_long_180p_av1.mp4": {"ffmpeg": _AV1},
    "media_sample_av1.mp4": {"ffmpeg": _AV1},
    "media_sample_with_invalid_nalu.mp4": {
        "instants": f"{_BROKEN}; a perfect read of it cannot give it",
        "pixels": "the same: that picture is an input/output error",
        "exact": "the same: a clip that begins with it shows nothing for its 33 ms",
    },
    "mp4ff_vvc_400kbps_2s.mp4": {"streams": "no browser plays VVC, so there are no streams of it"},
}

_COLUMNS = {
    "instants": "instants",
    "pixels": "pixels",
    "exact": "clips",
    "ffmpeg": "in ffmpeg",
    "key": "key",
    "fragments": "frag",
    "reads": "reads",
    "bytes": "bytes",
    "properties": "properties",
    "boxes": "boxes",
    "beyond": "beyond",
    "sound": "sound",
}


def folder() -> Path:
    """Where full decodes are kept."""
    return Path(os.environ.get("FIDELITY_DIR") or Path.home() / ".cache" / "reelfs-fidelity")


def real() -> list[str]:
    """The real media, by name."""
    return sorted(path.name for path in SHARED.iterdir() if path.suffix in (".mp4", ".mov"))


def generated(into: Path) -> Path:
    """The generated files in a folder."""
    into.mkdir(parents=True, exist_ok=True)
    for name, options in SAMPLES.items():
        encode(into / f"{name}{'.mov' if name.endswith('_mov') else '.mp4'}", frames=FRAMES, **options)
    return into


@dataclass(frozen=True)
class Media:
    """A folder of videos and the mount of it."""

    source: Path
    mount: Mounted

    def found(self, name: str, truths: Truths, seed: str = "") -> Found:
        """All checks of one file. seed: chooses instants and ranges."""
        case = Case(name, self.source / name, self.mount / name, truths, f"{seed}{name}")
        return damaged(case, self.mount.memory) if name.startswith(DAMAGED) else check(case)


@contextmanager
def media(kind: str) -> Iterator[Media]:
    """A folder of media, mounted: `real` or `generated`."""
    with tempfile.TemporaryDirectory(prefix="reelfs-fidelity-") as name:
        base = Path(name)
        source = SHARED if kind == "real" else generated(base / "made")
        (base / "mount").mkdir()
        with reelfs(str(source), base / "mount", {"HOME": name}, "--cache-dir", "none") as made:
            yield Media(source, made)


def unexpected(found: Found) -> list[str]:
    """What is wrong and not known to be."""
    known = KNOWN.get(found.name, {})
    return [problem for problem in found.wrong if problem.partition(":")[0] not in known]


def page(results: dict[str, list[Found]]) -> str:
    """The document."""
    every = [f for found in results.values() for f in found]
    exact = sum(not f.wrong and f.name not in KNOWN for f in every)
    summary = f"{len(every)} files, {exact} without exception; those of the others stand below, with causes."
    parts = [HEAD.format(today=datetime.date.today(), versions=versions(), ranges=RANGES, summary=summary)]
    for kind, found in results.items():
        parts.append(f"## {TITLES[kind]}\n")
        if kind == "damaged":
            rows = [[f"`{f.name}`", f.about, f.figures.get("damaged", "")] for f in found]
            parts.append(table(["file", "FFmpeg says", "answers"], rows))
            continue
        if kind == "encrypted":
            rows = [[f"`{f.name}`", f.about, f.figures["refused"]] for f in found]
            parts.append(table(["file", "what", "refused"], rows))
            continue
        rows = [[f"`{f.name}`", f.about, *(f.figures.get(check, "-") for check in _COLUMNS)] for f in found]
        parts.append(table(["file", "what", *_COLUMNS.values()], rows))
    lines = [
        f"- `{f.name}`, {check}: {cause}." for f in every for check, cause in KNOWN.get(f.name, {}).items()
    ]
    parts.append("## Exceptions, and why\n\n" + ("\n".join(lines) or "None.") + "\n")
    return "\n".join(parts)


TITLES = {
    "real": "Real files",
    "generated": "Generated files",
    "encrypted": "Encrypted files",
    "damaged": "Damaged files",
}
HEAD = (HERE / "fidelity_head.md").read_text()


def versions() -> str:
    """Of all that decodes."""
    library = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"PyAV {av.__version__} (libavcodec {library}) and {version_of('ffmpeg')}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


class Kept:
    """What was found of files, in a file of its own, as long as the plugin's code is the same."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        sources = sorted((ROOT / "plugins" / "vfs_mp4").glob("*.py"))
        self._path, self._code = path, hashlib.sha256(b"".join(s.read_bytes() for s in sources)).hexdigest()
        told = json.loads(path.read_text()) if resume and path.exists() else {}
        self._found: dict[str, Any] = told.get("found", {}) if told.get("code") == self._code else {}

    def get(self, name: str) -> Found | None:
        """What was found of a file."""
        return Found(**self._found[name]) if name in self._found else None

    def keep(self, found: Found) -> None:
        """Remember it for a run that resumes."""
        self._found[found.name] = found.told()
        self._path.write_text(json.dumps({"code": self._code, "found": self._found}))


def main() -> int:
    """Exit status: 0 when nothing is wrong but what is known."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="*", metavar="NAME", default=[], help="names that hold one of these")
    parser.add_argument("--update", action="store_true", help="write docs/fidelity.md")
    parser.add_argument("--resume", action="store_true", help="do not try again what this code was tried on")
    given = parser.parse_args()
    truths, kept, bad = Truths(folder()), Kept(folder() / "found.json", resume=given.resume), 0
    results: dict[str, list[Found]] = {kind: [] for kind in TITLES}
    with ExitStack() as stack:
        made = {kind: stack.enter_context(media(kind)) for kind in ("real", "generated")}
        names = [("real", name) for name in real()]
        names += [("generated", path.name) for path in sorted(made["generated"].source.iterdir())]
        for kind, name in names:
            if given.only and not any(part in name for part in given.only):
                continue
            found = kept.get(name) or made[kind].found(name, truths)
            kept.keep(found)
            group = "encrypted" if name in ENCRYPTED else "damaged" if name.startswith(DAMAGED) else kind
            results[group].append(found)
            problems = unexpected(found)
            bad += bool(problems)
            print(f"{name}: {found.about}: {json.dumps(found.figures)}", flush=True)
            for problem in found.wrong:
                print(f"    {'WRONG' if problem in problems else 'known'} {problem}", flush=True)
    if given.update and not given.only:
        PAGE.write_text(page(results))
    return bool(bad)


if __name__ == "__main__":
    sys.exit(main())
