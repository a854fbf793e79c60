"""Rows of the application's database as documents: what can be found by words, and which video it is. Pure.

Columns have changed over time, and what is not there is empty (`vfs.read_rows`); the file is untrusted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vfs import read_rows, words_of

Row = Mapping[str, Any]

TABLES = {
    "games": (
        *("id", "name", "video_path", "blake3_hash", "opponent_name", "game_date"),
        *("game_type", "tournament_name"),
    ),
    "game_videos": ("game_id", "sequence", "hash"),
    "raw_clips": (
        *("id", "game_id", "video_path", "filename", "start_time", "end_time", "rating", "tags"),
        *("notes", "name", "video_sequence"),
    ),
    "projects": ("id", "name", "working_video_path", "aspect_ratio"),
    "working_clips": ("id", "project_id", "raw_clip_id", "clip_index", "exported_path", "crop_keyframes"),
    "highlight_regions": ("id", "project_id", "start_frame", "end_frame"),
    "final_videos": ("id", "project_id", "game_id", "name", "video_path", "source_type"),
}
_HEX = re.compile(r"[0-9a-f]{8,128}")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
#: Characters of one field that are kept.
_MAX_TEXT = 4096


@dataclass(frozen=True, slots=True)
class File:
    """Where a video may be: a path in the user's folder, or a bare name in a folder of the contract.

    selection: which part of it, "" = all.
    """

    folder: str
    path: str
    selection: str = ""


@dataclass(frozen=True, slots=True)
class Document:
    """Something that can be found: a game, clip, project, export, highlight or final video.

    files: where its video may be, the likeliest first.
    """

    kind: str
    number: int
    files: tuple[File, ...]
    name: str = ""
    game_number: int = 0
    game: str = ""
    opponent: str = ""
    date: str = ""
    type: str = ""
    tournament: str = ""
    rating: int | None = None
    tags: tuple[str, ...] = ()
    notes: str = ""


@dataclass(frozen=True, slots=True)
class Cut:
    """What an exported video was made of: a stretch of a game in seconds."""

    game_number: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Library:
    """All documents of one database, and which stretches of games each cut or exported file shows.

    provenance: by the last component of the file's path.
    """

    documents: tuple[Document, ...]
    games: Mapping[int, Document]
    provenance: Mapping[str, tuple[Cut, ...]]

    @property
    def nbytes(self) -> int:
        """Memory, roughly."""
        return 1500 * len(self.documents) + 200 * len(self.provenance)


def read(data: bytes) -> Library:
    """The documents of a database. Raises Damaged, TooBig."""
    rows = read_rows(data, TABLES)
    games = {document.number: document for document in _games(rows["games"], rows["game_videos"])}
    clips = {document.number: document for document in _clips(rows["raw_clips"], games)}
    projects = {number: row for row in rows["projects"] if (number := _integer(row.get("id")))}
    exports = _exports(rows["working_clips"], projects, clips)
    documents = [
        *games.values(),
        *clips.values(),
        *_projects(projects),
        *exports,
        *_highlights(rows["highlight_regions"], projects),
        *_finals(rows["final_videos"], projects, games),
    ]
    return Library(tuple(documents), games, _provenance(rows, clips))


def _games(games: Iterable[Row], videos: Iterable[Row]) -> Iterator[Document]:
    parts: dict[int, list[File]] = {}
    for row in sorted(videos, key=lambda row: _integer(row.get("sequence")) or 0):
        if (game := _integer(row.get("game_id"))) is not None:
            parts.setdefault(game, []).extend(_hashed(row.get("hash")))
    for row in games:
        number = _integer(row.get("id"))
        if number is None:
            continue
        own = (*_files("games", row.get("video_path")), *_hashed(row.get("blake3_hash")))
        date = _text(row.get("game_date"))
        name = _text(row.get("name")) or f"game {number}"
        yield Document(
            "game",
            number,
            own or tuple(parts.get(number, ())),
            name=name,
            game_number=number,
            game=name,
            opponent=_text(row.get("opponent_name")),
            date=date[:10] if _DATE.match(date) else "",
            type=_text(row.get("game_type")),
            tournament=_text(row.get("tournament_name")),
        )


def _clips(clips: Iterable[Row], games: Mapping[int, Document]) -> Iterator[Document]:
    for row in clips:
        number, game = _integer(row.get("id")), games.get(_integer(row.get("game_id")) or 0)
        if number is None:
            continue
        start, end = _seconds(row.get("start_time")), _seconds(row.get("end_time"))
        files: list[File] = []
        if game is not None and start is not None and end is not None and end > start:
            selection = f"{_decimal(start)}s-{_decimal(end)}s"
            files += [replace(file, selection=selection) for file in game.files]
        files += _files("raw_clips", row.get("video_path") or row.get("filename"))
        about = game or Document("game", 0, ())
        yield replace(
            about,
            kind="clip",
            number=number,
            files=tuple(files),
            name=_text(row.get("name")),
            rating=_integer(row.get("rating")),
            tags=words_of(row.get("tags")),
            notes=_text(row.get("notes")),
        )


def _projects(projects: Mapping[int, Row]) -> Iterator[Document]:
    for number, row in projects.items():
        files = _files("working_videos", row.get("working_video_path"))
        if files:
            yield Document("project", number, files, name=_text(row.get("name")))


def _exports(
    rows: Iterable[Row], projects: Mapping[int, Row], clips: Mapping[int, Document]
) -> Iterator[Document]:
    """Working clips: what is known of the clip they were made of, and the project's name."""
    for row in rows:
        number, clip = _integer(row.get("id")), clips.get(_integer(row.get("raw_clip_id")) or 0)
        files = _files("working_videos", row.get("exported_path"))
        if number is not None and files:
            project = projects.get(_integer(row.get("project_id")) or 0, {})
            about = clip or Document("clip", 0, ())
            name = _text(project.get("name"))
            yield replace(about, kind="export", number=number, files=files, name=name)


def _highlights(rows: Iterable[Row], projects: Mapping[int, Row]) -> Iterator[Document]:
    for row in rows:
        number, project = _integer(row.get("id")), projects.get(_integer(row.get("project_id")) or 0)
        first, last = _integer(row.get("start_frame")), _integer(row.get("end_frame"))
        if number is None or project is None or first is None or last is None or not 0 <= first < last:
            continue
        files = _files("working_videos", project.get("working_video_path"))
        if files:
            marked = tuple(replace(file, selection=f"f{first}-f{last}") for file in files)
            yield Document("highlight", number, marked, name=_text(project.get("name")))


def _finals(
    rows: Iterable[Row], projects: Mapping[int, Row], games: Mapping[int, Document]
) -> Iterator[Document]:
    for row in rows:
        number, files = _integer(row.get("id")), _files("final_videos", row.get("video_path"))
        if number is None or not files:
            continue
        game = games.get(_integer(row.get("game_id")) or 0) or Document("game", 0, ())
        name = _text(row.get("name"))
        project = _text(projects.get(_integer(row.get("project_id")) or 0, {}).get("name"))
        notes = " ".join(filter(None, (project, _text(row.get("source_type")))))
        yield replace(game, kind="final", number=number, files=files, name=name, notes=notes)


def _provenance(
    rows: Mapping[str, Iterable[Row]], clips: Mapping[int, Document]
) -> dict[str, tuple[Cut, ...]]:
    """The stretches of games that cut, exported and final videos show, in the order in which they do."""
    cuts: dict[int, Cut] = {}
    found: dict[str, tuple[Cut, ...]] = {}
    for row in rows["raw_clips"]:
        number, game = _integer(row.get("id")), _integer(row.get("game_id"))
        start, end = _seconds(row.get("start_time")), _seconds(row.get("end_time"))
        if number is None or game is None or start is None or end is None or end <= start:
            continue
        cuts[number] = Cut(game, start, end)
        for file in _files("raw_clips", row.get("video_path") or row.get("filename")):
            found[_last(file.path)] = (cuts[number],)
    by_project: dict[int, list[tuple[int, Cut]]] = {}
    for row in rows["working_clips"]:
        cut = cuts.get(_integer(row.get("raw_clip_id")) or 0)
        project, index = _integer(row.get("project_id")), _integer(row.get("clip_index"))
        if cut is None:
            continue
        if project is not None:
            by_project.setdefault(project, []).append((index or 0, cut))
        for file in _files("working_videos", row.get("exported_path")):
            found[_last(file.path)] = (cut,)
    parts = {
        project: tuple(cut for _, cut in sorted(all_cuts, key=lambda one: one[0]))
        for project, all_cuts in by_project.items()
    }
    for table, key, column, folder in (
        ("projects", "id", "working_video_path", "working_videos"),
        ("final_videos", "project_id", "video_path", "final_videos"),
    ):
        for row in rows[table]:
            made_of = parts.get(_integer(row.get(key)) or 0)
            for file in _files(folder, row.get(column)) if made_of else ():
                found[_last(file.path)] = made_of or ()
    return found


# ---------------------------------------------------------------- values


def _files(folder: str, value: object) -> tuple[File, ...]:
    """A path as the application stored it: of the user's folder, a bare name, or one of an old machine."""
    stored = _text(value)
    parts = stored.replace("\\", "/").split("/")
    last = parts[-1]
    if last in ("", ".", ".."):
        return ()
    relative = len(parts) > 1 and "" not in parts and ".." not in parts
    bare = File(folder, last)
    return (File("", "/".join(parts)), bare) if relative else (bare,)


def _hashed(value: object) -> tuple[File, ...]:
    """The object that a game is by its hash."""
    text = _text(value).lower()
    return (File("games", f"{text}.mp4"),) if _HEX.fullmatch(text) else ()


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _integer(value: object) -> int | None:
    return value if isinstance(value, int) and abs(value) < 1 << 53 else None


def _text(value: object) -> str:
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _seconds(value: object) -> float | None:
    good = isinstance(value, int | float) and math.isfinite(value) and 0 <= value < 10**9
    return float(value) if good else None  # type: ignore[arg-type]


def _decimal(seconds: float) -> str:
    """To the nanosecond, as names of selections are written."""
    return f"{seconds:.9f}".rstrip("0").rstrip(".")
