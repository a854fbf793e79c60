"""What a search found, and how it is called. Pure."""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vfs import escape

#: Bytes of the opponent (else the title) inside the name of a result.
_MAX_TITLE = 60


@dataclass(frozen=True, slots=True)
class Hit:
    """A part of a file that was found.

    path: of the file. selection: which part, "" = all. start, end: seconds, None where not known before
    the file is looked at. tier: which way of looking found it. details: shown as `user.reelfs.search.NAME`.
    """

    path: str
    selection: str
    score: float
    tier: str
    start: float | None = None
    end: float | None = None
    game: int = 0
    date: str = ""
    opponent: str = ""
    title: str = ""
    rating: int | None = None
    matched: float | None = None
    details: Mapping[str, str] = field(default_factory=dict)

    @property
    def clip(self) -> str:
        """The path of the file or of the part, in the tree."""
        return f"{self.path}@{self.selection}.mp4" if self.selection else self.path


@dataclass(frozen=True, slots=True)
class Answer:
    """What a query found, best first. status: what was searched and how far.

    whole: False while what is asked about is still being looked at.
    """

    hits: tuple[Hit, ...]
    status: Mapping[str, Any]
    whole: bool = True


def order(hits: Sequence[Hit], by: str) -> list[Hit]:
    """Sorted; equal ones by date, rating, path and time."""
    dates = sorted({hit.date for hit in hits}, reverse=True)
    newest = {date: number for number, date in enumerate(dates)}

    def key(hit: Hit) -> tuple[Any, ...]:
        place = (hit.path, hit.start or 0.0)
        rest = (newest[hit.date], -(hit.rating or 0))
        rated = -1 if hit.rating is None else hit.rating
        first = {"score": -hit.score, "rating": -rated}.get(by, 0)
        return (*place, *rest) if by == "path" else (first, *rest, *place)

    return sorted(hits, key=key)


def name(rank: int, hit: Hit, start: float | None, end: float | None) -> str:
    """`001_s0.93_2025-09-14_Lions_00h12m05.0s-00h12m09.0s_g17.mp4`; parts that are not known are left out."""
    parts = [f"{rank:03}", f"s{hit.score:.2f}", hit.date, _plain(hit.opponent or hit.title)]
    if start is not None and end is not None:
        parts.append(f"{_clock(start)}-{_clock(end)}")
    parts.append(f"g{hit.game}" if hit.game else "")
    extension = "mp4" if hit.selection else hit.path.rpartition(".")[2].lower()
    return "_".join(filter(None, parts)) + f".{extension if extension.isalnum() else 'mp4'}"


def _clock(seconds: float) -> str:
    tenths = math.floor(seconds * 10 + 0.5)
    return f"{tenths // 36000:02}h{tenths // 600 % 60:02}m{tenths % 600 // 10:02}.{tenths % 10}s"


def _plain(text: str) -> str:
    """Text of people as a part of a name: letters, digits and dashes."""
    kept = "".join(c if c.isalnum() or unicodedata.combining(c) else "-" for c in text[:200])
    kept = "-".join(filter(None, kept.split("-")))
    return kept.encode("utf-8", "ignore")[:_MAX_TITLE].decode("utf-8", "ignore")


def attributes(hit: Hit, rank: int) -> dict[str, str]:
    """`search.score` and so on: what `user.reelfs.` shows of a result."""
    told = {"rank": str(rank), "score": f"{hit.score:.4f}", "tier": hit.tier, "source": hit.path}
    told |= {} if hit.start is None else {"start": f"{hit.start:.3f}"}
    told |= {} if hit.end is None else {"end": f"{hit.end:.3f}"}
    return {f"search.{key}": value for key, value in (told | dict(hit.details)).items()}


def as_json(names: Mapping[str, Hit], *, whole: bool) -> bytes:
    """`results.json`: a list, best first; `preparing` where it is not whole."""
    rows = [
        {
            "rank": rank,
            "name": called,
            "path": hit.clip,
            "source": hit.path,
            "selection": hit.selection,
            "score": hit.score,
            "tier": hit.tier,
            "start": hit.start,
            "end": hit.end,
            "game": hit.game or None,
            "date": hit.date,
            "opponent": hit.opponent,
            "title": hit.title,
            "rating": hit.rating,
            **hit.details,
        }
        for rank, (called, hit) in enumerate(names.items(), 1)
    ]
    told = {} if whole else {"preparing": True}
    return json.dumps({**told, "results": rows}, indent=1).encode() + b"\n"


def as_playlist(names: Mapping[str, Hit]) -> bytes:
    """`results.m3u8`: the results as entries of a playlist beside them."""
    lines = ["#EXTM3U"]
    for called, hit in names.items():
        title = " ".join(f"{hit.opponent} {hit.date} {hit.title}".split())
        told = "-1" if hit.start is None or hit.end is None else f"{hit.end - hit.start:.3f}"
        lines += [f"#EXTINF:{told},{title}", escape(called)]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")
