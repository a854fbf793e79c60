"""What the components of a search path mean. Pure.

::

    search-path = "search/" kind "/" query { "/" option } "/@/" result
    kind/query  = "text/"  term { "+" term }
                | "frame/" enc-path "@" instant
                | "clip/"  enc-path "@" range
    term        = [ "-" ] ( word | '"' words '"' | field ":" value )
    value       = words | from ".." | ".." to | from ".." to
    option      = "limit:" n | "min:" score | "in:" folder | "sort:" order | "descriptor:" name | "tier:" name

`%XX` stands for any byte; `_` and a space are the same between words. A path is percent-encoded into one
component; its moment follows the last `@`, in the spelling of derived names (`12.5s`, `5s-9s`, `f123`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from vfs import Malformed, Selection, parse_derived, unescape

#: Fields that hold words, and what the index calls them.
WORDS = {
    "opponent": "opponent",
    "tag": "tags",
    "game": "game",
    "notes": "notes",
    "type": "type",
    "tournament": "tournament",
    "name": "name",
    "kind": "kind",
}
#: Fields that have an order.
ORDERED = ("rating", "date")
SORTS = ("score", "date", "rating", "path")
#: Ways of looking for a picture or a clip; `all` = all of them, else the first that is sure.
TIERS = ("provenance", "coded", "sound", "visual", "all")
#: Terms of one query: each is a condition of a statement.
MAX_TERMS = 32
MAX_LIMIT = 1000
_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2})?)?")


@dataclass(frozen=True, slots=True)
class Term:
    """One condition. field: "" = any text. words: what to find, or "" where low and high bound a value."""

    field: str
    words: str = ""
    low: str = ""
    high: str = ""
    negative: bool = False


@dataclass(frozen=True, slots=True)
class Text:
    """All of these are true of a result."""

    terms: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """A picture (an instant) or a clip (a range) of a file of the mount."""

    path: str
    selection: Selection


@dataclass(frozen=True, slots=True)
class Options:
    """limit: results at most. least: score they must have, None = not said. folder: they lie below it."""

    limit: int = 20
    least: float | None = None
    folder: str = ""
    sort: str = "score"
    descriptor: str = ""
    tier: str = ""

    def with_option(self, component: str) -> Options | None:
        """These and one more; None for a name that is no option. Raises Malformed for one that is wrong."""
        name, colon, value = unescape(component).partition(":")
        if not colon or name not in ("limit", "min", "in", "sort", "descriptor", "tier"):
            return None
        if name == "limit":
            if not re.fullmatch(r"[0-9]{1,6}", value) or not 1 <= int(value) <= MAX_LIMIT:
                raise Malformed(f"limit:{value}: a number from 1 to {MAX_LIMIT}")
            return replace(self, limit=int(value))
        if name == "min":
            if not re.fullmatch(r"(0(\.[0-9]{1,9})?|1(\.0{1,9})?|\.[0-9]{1,9})", value):
                raise Malformed(f"min:{value}: a score from 0 to 1")
            return replace(self, least=float(value))
        if name == "in":
            return replace(self, folder=value.strip("/"))
        if name == "sort":
            if value not in SORTS:
                raise Malformed(f"sort:{value}: one of {', '.join(SORTS)}")
            return replace(self, sort=value)
        if name == "tier":
            if value not in TIERS:
                raise Malformed(f"tier:{value}: one of {', '.join(TIERS)}")
            return replace(self, tier=value)
        return replace(self, descriptor=value)

    def wants(self, path: str) -> bool:
        """Whether a file lies where results are wanted."""
        return not self.folder or path == self.folder or path.startswith(f"{self.folder}/")


def parse_text(component: str) -> tuple[Text, Options]:
    """Terms, and the options among them (`in:` may stand with the terms). Raises Malformed."""
    terms, options = [], Options()
    for raw in _terms(component):
        if raw.startswith("in:") and len(raw) > 3:
            options = replace(options, folder=unescape(raw[3:]).strip("/"))
        else:
            terms.append(_term(raw))
    if not terms and not options.folder:
        raise Malformed("there is no term to look for")
    if len(terms) > MAX_TERMS:
        raise Malformed(f"{len(terms)} terms; at most {MAX_TERMS} are looked for together")
    return Text(tuple(terms)), options


def _terms(component: str) -> list[str]:
    """Cut at each `+` that is not inside quotes. Raises Malformed for a quote that is not closed."""
    found, inside = [""], False
    for character in component:
        if character == '"':
            inside = not inside
        if character == "+" and not inside:
            found.append("")
        else:
            found[-1] += character
    if inside:
        raise Malformed("a quote is opened and not closed")
    return [term for term in found if term]


def _term(raw: str) -> Term:
    negative = raw.startswith("-")
    raw = raw[negative:]
    if raw.startswith('"'):
        return Term("", _words(raw, raw), negative=negative)
    field, colon, value = raw.partition(":")
    if not colon:
        return Term("", _words(raw, raw), negative=negative)
    if field in WORDS:
        return Term(WORDS[field], _words(value, raw), negative=negative)
    if field in ORDERED:
        low, high = _bounds(field, unescape(value))
        return Term(field, low=low, high=high, negative=negative)
    known = ", ".join((*WORDS, *ORDERED, "in"))
    raise Malformed(f"{field}: is no field; there are {known}; put words with a colon in quotes")


def _words(raw: str, term: str) -> str:
    """What to look for; something of it must be a word."""
    text = unescape(raw.replace('"', " ")).replace("_", " ").replace("\0", " ").strip()
    if not any(character.isalnum() for character in text):
        raise Malformed(f"{term or raw!r}: there is no word in it")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise Malformed(f"{term}: words are written in UTF-8")
    return text


def _bounds(field: str, value: str) -> tuple[str, str]:
    low, dots, high = value.partition("..")
    if not dots:
        high = low
    if not (low or high):
        raise Malformed(f"{field}:{value}: a value, FROM.., ..TO or FROM..TO")
    good = _DATE if field == "date" else re.compile(r"-?[0-9]{1,9}(\.[0-9]{1,9})?")
    for bound in (low, high):
        if bound and not good.fullmatch(bound):
            raise Malformed(
                f"{field}:{bound}: {'YYYY, YYYY-MM or YYYY-MM-DD' if field == 'date' else 'a number'}"
            )
    return low, high


def parse_moment(component: str, *, is_range: bool) -> Moment:
    """`games%2Fx.mp4@12.5s` or `games%2Fx.mp4@5s-9s`. Raises Malformed."""
    encoded, at, moment = component.rpartition("@")
    derived = parse_derived(f"{moment}.mp4")
    wanted = "5s-9s" if is_range else "12.5s"
    if not at or not encoded or derived is None or derived.mode or derived.selection.is_range != is_range:
        raise Malformed(
            f"{component}: a percent-encoded path, `@` and a {'range' if is_range else 'time'}"
            f", as games%2Fx.mp4@{wanted}"
        )
    path = unescape(encoded).strip("/")
    if "\0" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise Malformed(f"{encoded} is no path of this mount")
    return Moment(path, derived.selection)
