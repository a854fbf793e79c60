"""Sizes, durations, lists and odd names as people read and write them. Pure."""

from __future__ import annotations

import re

#: Binary by default: `k`, `kB` and `KiB` all mean 1024, as mount options and cache settings are read
#: everywhere else; nobody who asks for a 10 GB cache wants the 7 % less.
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(?:i?b)?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_UNITS = ("", "KiB", "MiB", "GiB", "TiB", "PiB")

_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}


def parse_size(text: str) -> int:
    """Bytes of `10GiB`, `256MiB`, `64k`, `1.5G`, `4096`. Raises ValueError."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size: write 10GiB, 256MiB, 64k or a number of bytes")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def format_size(size: int) -> str:
    """The shortest exact spelling, which `parse_size` reads back: 10737418240 -> `10GiB`."""
    power = 0
    while size and size % 1024 == 0 and power < len(_UNITS) - 1:
        size, power = size // 1024, power + 1
    return f"{size}{_UNITS[power]}"


def human_size(size: float) -> str:
    """A rounded size for people: `4.4 MiB`."""
    power = 0
    while size >= 1024 and power < len(_UNITS) - 1:
        size, power = size / 1024, power + 1
    return f"{size:.0f} B" if power == 0 else f"{size:.1f} {_UNITS[power]}"


def parse_seconds(text: str) -> float:
    """Seconds of `30`, `30s`, `500ms`, `2m`, `1m30s`, `1h`. Raises ValueError."""
    rest, total = text.strip(), 0.0
    if not rest:
        raise ValueError("an empty text is not a duration")
    while rest:
        match = _DURATION.match(rest)
        if match is None:
            raise ValueError(f"{text!r} is not a duration: write 30s, 500ms, 2m or a number of seconds")
        total += float(match[1]) * _SECONDS[match[2]]
        rest = rest[match.end() :].lstrip()
    return total


def visible(text: str) -> str:
    r"""Control characters and bytes that are no UTF-8 escaped (`\n`, `\udcff`): one line stays one line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def split_list(text: str) -> list[str]:
    r"""The items of a comma-separated text; `\,` is a comma inside an item, `\\` a backslash."""
    items, item, escaped = [], "", False
    for character in text:
        if escaped:
            item += character if character in ",\\" else "\\" + character
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == ",":
            items.append(item)
            item = ""
        else:
            item += character
    items.append(item + ("\\" if escaped else ""))
    return [stripped for each in items if (stripped := each.strip())]
