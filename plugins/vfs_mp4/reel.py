"""The text of a `*.reel`: one `path@A-B` a line. Pure.

A line is a stored file and a range of the grammar of derived names. Paths are relative to the reel's own
folder, or with a leading `/` from the root of the mount; `%` begins a percent-escape as `vfs.escape` writes
it. Lines that are blank or begin with `#` say nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from vfs import Damaged, Selection, TooBig, parse_derived, unescape

SUFFIX = ".reel"
#: A line of 1,024 bytes for each clip; more is no list anybody wrote.
MAX_BYTES = 1 << 20
#: Each costs an edit a track, and opening its source.
MAX_LINES = 1000


@dataclass(frozen=True, slots=True)
class Line:
    """One clip. number: of the line, from 1; text: as written; path: below the root of the mount."""

    number: int
    text: str
    path: str
    selection: Selection


@dataclass(frozen=True, slots=True)
class Wrong:
    """A line that is no clip. reason: what is wrong, and what would be right."""

    number: int
    text: str
    reason: str


def parse(data: bytes, folder: str) -> list[Line | Wrong]:
    """The lines that say something. folder: path of the reel's folder.

    Raises TooBig over the limits, Damaged where no line says anything.
    """
    if len(data) > MAX_BYTES:
        raise TooBig(f"a reel of {len(data)} bytes: the limit is {MAX_BYTES}")
    text = data.decode("utf-8-sig", "surrogateescape")
    found: list[Line | Wrong] = []
    for number, line in enumerate(text.splitlines(), 1):
        if (stripped := line.strip()) and not stripped.startswith("#"):
            found.append(_line(number, stripped, folder))
    if not found:
        raise Damaged("no line names a clip: one is path@A-B, such as games/x.mp4@5s-9s")
    if len(found) > MAX_LINES:
        raise TooBig(f"a reel of {len(found)} clips: the limit is {MAX_LINES}")
    return found


def _line(number: int, text: str, folder: str) -> Line | Wrong:
    name, at, rest = text.rpartition("@")
    if not at or not name:
        return Wrong(number, text, "no range: a line is path@A-B, such as games/x.mp4@5s-9s")
    derived = parse_derived(rest.strip() + ".mp4")
    if derived is None or derived.mode:
        return Wrong(number, text, f"{rest.strip()!r} is no range: A-B, A+D or A-, such as 5s-9s")
    if not derived.selection.is_range:
        return Wrong(number, text, f"{rest.strip()!r} is an instant: a range is A-B, A+D or A-")
    path = _absolute(unescape(name.strip()), folder)
    if path is None:
        return Wrong(number, text, "the path leads out of what is mounted, or to no file")
    return Line(number, text, path, derived.selection)


def _absolute(path: str, folder: str) -> str | None:
    """The path below the root; None where `..` leads above it."""
    parts = [] if path.startswith("/") else [part for part in folder.split("/") if part]
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts) or None
