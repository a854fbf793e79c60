"""Rows of the application's `database.sqlite` that say which clips of which games there are. Pure.

The file is untrusted, and its schema has changed over time: what a table has is asked of it, and a column
that is not there is empty (`vfs.read_rows`).
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

from vfs import read_rows, words_of

#: Bytes of a name without its extension and what tells it from others; the limit of a name is 255.
_MAX_NAME = 200
_CLIP = ("id", "game_id", "start_time", "end_time", "rating", "name", "notes", "tags", "video_sequence")
_GAME = ("id", "name", "video_path", "blake3_hash")
_VIDEO = ("game_id", "sequence", "hash")
_HEX = re.compile(r"[0-9a-f]{8,128}")
#: Of text that is shown as an attribute.
_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class Game:
    """A game: name as people call it; files: where its video may be, the likeliest first, by sequence.

    A path with a slash is of the user's folder, one without of a folder `games`. Sequence None: the only one.
    """

    name: str
    files: Mapping[int | None, tuple[str, ...]]

    def of(self, sequence: int | None) -> tuple[str, ...]:
        """The files of a sequence number, those of the game itself where it has no parts."""
        return self.files.get(sequence) or self.files.get(None) or ()


@dataclass(frozen=True, slots=True)
class Row:
    """A clip [start, end) in seconds of a file of a game. name: of the file, without extension."""

    number: int
    name: str
    game: Game
    sequence: int | None
    start: Fraction
    end: Fraction
    rating: int | None
    tags: tuple[str, ...]
    notes: str


@dataclass(frozen=True, slots=True)
class Clips:
    """All clips by name, and what is wrong with the rows that are none."""

    rows: Mapping[str, Row]
    wrong: tuple[str, ...]

    @property
    def nbytes(self) -> int:
        """Memory, roughly."""
        return 1000 * len(self.rows)


def read(data: bytes) -> Clips:
    """The clips of a database. Raises Damaged, TooBig."""
    found = read_rows(data, {"raw_clips": _CLIP, "games": _GAME, "game_videos": _VIDEO})
    return _named(found["raw_clips"], _games(found["games"], found["game_videos"]))


def _games(games: Iterable[dict[str, Any]], videos: Iterable[dict[str, Any]]) -> dict[int, Game]:
    parts: dict[int, dict[int | None, tuple[str, ...]]] = {}
    for row in videos:
        game, sequence = _integer(row.get("game_id")), _integer(row.get("sequence"))
        if game is not None and sequence is not None:
            parts.setdefault(game, {})[sequence] = _content_named(row.get("hash"))
    found = {}
    for row in games:
        number = _integer(row.get("id"))
        if number is not None:
            own = _paths(_text(row.get("video_path"))) + _content_named(row.get("blake3_hash"))
            files = {None: own, **parts.get(number, {})}
            found[number] = Game(_text(row.get("name")) or f"game {number}", files)
    return found


def _paths(stored: str) -> tuple[str, ...]:
    """A path as the application stored it: of the user's folder, a bare name, or one of an old machine."""
    parts = stored.replace("\\", "/").split("/")
    last = parts[-1]
    if last in ("", ".", "..") or "\0" in last:
        return ()
    relative = len(parts) > 1 and "" not in parts and ".." not in parts and "\0" not in stored
    return ("/".join(parts), last) if relative else (last,)


def _content_named(value: object) -> tuple[str, ...]:
    """The object that a game is by its hash."""
    text = _text(value).lower()
    return (f"{text}.mp4",) if _HEX.fullmatch(text) else ()


def _named(clips: Iterable[dict[str, Any]], games: Mapping[int, Game]) -> Clips:
    rows: dict[str, Row] = {}
    wrong: list[str] = []
    used: set[str] = set()
    for clip in clips:
        number = _integer(clip.get("id"))
        game = games.get(_integer(clip.get("game_id")) or 0)
        start, end = _seconds(clip.get("start_time")), _seconds(clip.get("end_time"))
        if number is None:
            wrong.append("a clip without an id")
        elif game is None:
            wrong.append(f"clip {number}: there is no game {clip.get('game_id')!r}")
        elif start is None or end is None or end <= start:
            wrong.append(f"clip {number}: no times {clip.get('start_time')!r} to {clip.get('end_time')!r}")
        else:
            row = _row(clip, number, game, start, end)
            rows[_free(row, used)] = row
    return Clips(rows, tuple(wrong))


def _row(clip: Mapping[str, Any], number: int, game: Game, start: Fraction, end: Fraction) -> Row:
    rating, tags = _integer(clip.get("rating")), words_of(clip.get("tags"))
    notes = _text(clip.get("notes"))
    first_line = next((line for line in notes.splitlines() if line.strip()), "")
    title = _text(clip.get("name")).strip() or first_line or ", ".join(tags) or f"clip {number}"
    name = file_name(title if rating is None else f"{rating} {title}") or f"clip {number}"
    sequence = _integer(clip.get("video_sequence"))
    return Row(number, name, game, sequence, start, end, rating, tags, notes[:_MAX_TEXT])


def _free(row: Row, used: set[str]) -> str:
    """The name of a row; one that is taken, in whatever case, gets the id of its row."""
    name = row.name
    while unicodedata.normalize("NFC", name).casefold() in used:
        name = f"{row.name} ({row.number})" if name == row.name else f"{name}_"
    used.add(unicodedata.normalize("NFC", name).casefold())
    return f"{name}.mp4"


def file_name(text: str) -> str:
    """Text of people as a name: no slash or control characters, no dot in front, not too long; may be ""."""
    kept = "".join(" " if c == "/" or unicodedata.category(c) in _UNSEEN else c for c in text[:1000])
    kept = " ".join(kept.split()).lstrip(". ")
    return kept.encode("utf-8", "replace")[:_MAX_NAME].decode("utf-8", "ignore").rstrip(". ")


#: Control, format, surrogate, private and unassigned characters; line and paragraph separators.
_UNSEEN = frozenset(("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"))


# ---------------------------------------------------------------- values


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and abs(value) < 1 << 53 else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _seconds(value: object) -> Fraction | None:
    """A time as it was written: 3.1 is 31/10, to the nanosecond; None for no time of a game."""
    if not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value < 10**9:
        return None
    return Fraction(round(Decimal(repr(value)), 9))
