"""The grammar of derived names, names beside databases, and names that cannot be paths. Pure.

A derived name is `NAME@SEL[.MODE].FMT`; what follows the last `@` is parsed here into a `Derived`. Times
stay exact (`Fraction` seconds): `0.1s` is one tenth, never a float. Anything that is not in the grammar
(negative, NaN, exponents, reversed or absurdly long numbers) is None, which the tree answers with ENOENT.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

#: Longest name of one path component in bytes: NAME_MAX of Linux.
NAME_MAX = 255
#: Folders at the root of what is mounted that begin so are found by name, not listed: what reelfs and its
#: plugins keep in the source, such as what was deleted.
OWN = ".reelfs-"
TRASH = f"{OWN}trash"
#: Most digits before and after the decimal point: 31 years, and a nanosecond. More is a slip or an attack.
MAX_DIGITS = 9

_NUMBER = rf"\d{{1,{MAX_DIGITS}}}(?:\.\d{{1,{MAX_DIGITS}}})?"
_SECONDS = re.compile(rf"({_NUMBER})(s|ms)?")
_UNITS = re.compile(rf"(?=\d)(?:(\d{{1,{MAX_DIGITS}}})h)?(?:(\d{{1,{MAX_DIGITS}}})m)?(?:({_NUMBER})s)?")
_CLOCK = re.compile(rf"(?:(\d{{1,{MAX_DIGITS}}}):)?(\d{{1,2}}):(\d{{1,2}}(?:\.\d{{1,{MAX_DIGITS}}})?)")
_ORDINAL = re.compile(rf"([fk])(\d{{1,{MAX_DIGITS}}})")
_DERIVED = re.compile(r"(?P<sel>.+?)(?:\.(?P<mode>[a-z][a-z0-9]*))?\.(?P<format>[a-z][a-z0-9]*)", re.ASCII)
#: What SQLite keeps beside a database, and how databases are called.
_COMPANIONS = frozenset(("wal", "shm", "journal"))
_DATABASES = (".sqlite", ".sqlite3", ".db", ".db3")

Kind = Literal["time", "frame", "key"]


@dataclass(frozen=True, slots=True)
class Moment:
    """An instant: `time` in seconds on the player line, `frame` in display order or `key` frame, from 0."""

    kind: Kind
    value: Fraction

    @property
    def canonical(self) -> str:
        """The one spelling of this moment: `65.5s`, `f12`, `k3`."""
        if self.kind != "time":
            return f"{self.kind[0]}{self.value}"
        whole, rest = divmod(self.value, 1)
        # Twelve places: milliseconds with nine fraction digits are the finest the grammar can say.
        digits = f"{int(rest * 10**12):012d}".rstrip("0")
        return f"{whole}.{digits}s" if digits else f"{whole}s"


@dataclass(frozen=True, slots=True)
class Selection:
    """An instant (`start` alone), or a range [start, stop), [start, start + length), [start, end of file).

    At most one of stop, length and open_end is set; `A+D` of one kind is already turned into `stop`.
    """

    start: Moment
    stop: Moment | None = None
    length: Moment | None = None
    open_end: bool = False

    @property
    def is_range(self) -> bool:
        """False for an instant."""
        return self.open_end or self.stop is not None or self.length is not None

    @property
    def canonical(self) -> str:
        """The one spelling that all spellings of this selection share."""
        first = self.start.canonical
        if self.stop is not None:
            return f"{first}-{self.stop.canonical}"
        if self.length is not None:
            return f"{first}+{self.length.canonical}"
        return f"{first}-" if self.open_end else first


@dataclass(frozen=True, slots=True)
class Derived:
    """`SEL[.MODE].FMT` taken apart; mode is "" when there is none."""

    selection: Selection
    mode: str
    format: str

    @property
    def canonical(self) -> str:
        """The one spelling that all spellings of this name share."""
        return ".".join(filter(None, (self.selection.canonical, self.mode, self.format)))


def parse_moment(text: str) -> Moment | None:
    """`5`, `5s`, `5.0s`, `5000ms`, `1m5s`, `00:01:05.5`, `f123` or `k3`; None for anything else."""
    if not text.isascii():
        return None
    if match := _ORDINAL.fullmatch(text):
        return Moment("frame" if match[1] == "f" else "key", Fraction(match[2]))
    if match := _SECONDS.fullmatch(text):
        return Moment("time", Fraction(match[1]) / (1000 if match[2] == "ms" else 1))
    if match := _CLOCK.fullmatch(text):
        hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
        if minutes >= 60 or seconds >= 60:
            return None
        return Moment("time", hours * 3600 + minutes * 60 + seconds)
    if match := _UNITS.fullmatch(text):
        hours, minutes, seconds = (Fraction(part or 0) for part in match.groups())
        return Moment("time", hours * 3600 + minutes * 60 + seconds)
    return None


def parse_selection(text: str) -> Selection | None:
    """An instant `A` or a range `A-B`, `A+D`, `A-`; None when it is not one, or is empty or reversed."""
    if not (cut := re.search(r"[-+]", text)):
        start = parse_moment(text)
        return Selection(start) if start else None
    start, rest = parse_moment(text[: cut.start()]), text[cut.end() :]
    if start is None:
        return None
    if not rest:
        return Selection(start, open_end=True) if cut[0] == "-" else None
    second = parse_moment(rest)
    if second is None:
        return None
    if cut[0] == "+":
        if second.value == 0 or second.kind == "key":
            return None
        if second.kind != start.kind:
            return Selection(start, length=second)
        second = Moment(start.kind, start.value + second.value)
    if second.kind == start.kind and second.value <= start.value:
        return None
    return Selection(start, stop=second)


def parse_derived(rest: str) -> Derived | None:
    """What follows `NAME@`: `5s-9.5s.frag.mp4`; None when it is not in the grammar."""
    if not (match := _DERIVED.fullmatch(rest)):
        return None
    selection = parse_selection(match["sel"])
    return Derived(selection, match["mode"] or "", match["format"]) if selection else None


def split_derived(name: str) -> tuple[str, str] | None:
    """`("clip", "5s.jpg")` of `clip@5s.jpg`, cut at the last `@`; None when there is no name before one."""
    stem, at, rest = name.rpartition("@")
    return (stem, rest) if at and stem else None


def companion(name: str) -> tuple[str, str] | None:
    """`("x.sqlite", "wal")` of `x.sqlite-wal`: the file it lies beside, and what it is to SQLite, or None.

    The others are `-shm`, the index of a `-wal`, and `-journal`.
    """
    base, dash, kind = name.rpartition("-")
    return (base, kind) if base and dash and kind in _COMPANIONS else None


def is_database_name(name: str) -> bool:
    """Whether a file is an SQLite database by its name: `.sqlite`, `.sqlite3`, `.db`, `.db3`."""
    return name.lower().endswith(_DATABASES)


def marked(name: str, mark: str, most: int = NAME_MAX) -> str:
    """`NAME (MARK).EXT`: another file beside one, its name cut where all would be more than `most` bytes."""
    stem, dot, extension = name.rpartition(".")
    if not stem:
        stem, dot, extension = name, "", ""
    tail = f" ({mark}){dot}{extension}"
    room = max(1, most - len(tail.encode("utf-8", "surrogateescape")))
    return stem.encode("utf-8", "surrogateescape")[:room].decode("utf-8", "ignore") + tail


def is_component(name: str) -> bool:
    """True when a name can stand as one component of a path."""
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and "\0" not in name
        and len(name.encode("utf-8", "surrogateescape")) <= NAME_MAX
    )


def is_path(key: str) -> bool:
    """True when every component of a key can stand in a path; one trailing slash (a folder marker) may."""
    return all(is_component(part) for part in key.removesuffix("/").split("/"))


def escape(text: str) -> str:
    """Percent-encode a path or key into one component (`games%2Fx.mp4`); spaces and Unicode stay readable."""
    kept = quote(text, safe=" !#$&'()*+,:;=?@[]", encoding="utf-8", errors="surrogateescape")
    return "%2E" + kept[1:] if kept.startswith(".") else kept


def key_name(key: str) -> str:
    """One listed name for any key: escaped; one too long keeps its beginning and ends in a hash."""
    name = escape(key)
    if len(name.encode("utf-8", "surrogateescape")) <= NAME_MAX:
        return name
    digest = hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
    kept = name.encode("utf-8", "surrogateescape")[: NAME_MAX - len(digest) - 1]
    return f"{kept.decode('utf-8', 'ignore')}~{digest}"


def unescape(name: str) -> str:
    """The text that `escape` was given."""
    return unquote_to_bytes(name.encode("utf-8", "surrogateescape")).decode("utf-8", "surrogateescape")
