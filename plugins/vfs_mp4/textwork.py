"""Timed text out of its samples, as SRT or WebVTT. Runs in worker processes: strangers wrote it.

Sample forms: 3GPP timed text (3GPP TS 26.245) and QuickTime text, WebVTT and TTML in ISO/IEC 14496-30.
"""

from __future__ import annotations

import html
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from xml.etree import ElementTree

from vfs import Damaged

#: Sample entry 4cc of text that becomes SRT and WebVTT.
KINDS = frozenset(("tx3g", "text", "wvtt", "stpp"))
#: Bits of a face in `styl`, and the tag of each.
_FACES = ((1, "b"), (2, "i"), (4, "u"))
_TAG = re.compile(r"<[^>]*>")
_KEPT_TAG = re.compile(r"</?[biu]>")
_TIMES = re.compile(r"(?:(\d+):)(\d+):(\d+(?:\.\d+)?)(?::(\d+))?|(\d+(?:\.\d+)?)(h|m|s|ms|f|t)")
_UNITS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


@dataclass(frozen=True, slots=True)
class Cue:
    """Text shown in [start, end) milliseconds. text: lines, escaped and with tags as in WebVTT."""

    start: int
    end: int
    text: str
    settings: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """Samples that lie behind each other. starts, ends: when each is shown, milliseconds of path times.

    shifts: what to add to media times, as TTML has them, for path times, milliseconds.
    """

    kind: str
    sizes: tuple[int, ...]
    starts: tuple[int, ...]
    ends: tuple[int, ...]
    shifts: tuple[int, ...]


def subtitles(job: Job, data: bytes, format: str) -> bytes:
    """A file of all cues: `srt` or `vtt`. Raises Damaged."""
    found = joined(cues(job, data))
    return (as_srt(found) if format == "srt" else as_vtt(found)).encode()


def titles(sizes: Sequence[int], data: bytes) -> list[str]:
    """The text of each sample, in one line: of a track of chapters."""
    return [" ".join(html.unescape(_TAG.sub("", _styled(s))).split()) for s in _cut(sizes, data)]


def cues(job: Job, data: bytes) -> Iterator[Cue]:
    """What is shown, in the order of the samples."""
    times = zip(job.starts, job.ends, job.shifts, strict=True)
    for sample, (start, end, shift) in zip(_cut(job.sizes, data), times, strict=True):
        if job.kind == "wvtt":
            yield from _webvtt(sample, start, end)
        elif job.kind == "stpp":
            yield from _ttml(sample, start, end, shift)
        elif text := _styled(sample):
            yield Cue(start, end, text)


def joined(found: Iterable[Cue]) -> list[Cue]:
    """In order of time; what goes on in the next sample is one cue, empty ones are none."""
    kept: list[Cue] = []
    open_cues: dict[tuple[str, str], int] = {}
    for cue in sorted(found, key=lambda cue: (cue.start, cue.end)):
        if cue.end <= cue.start or not cue.text.strip():
            continue
        at = open_cues.get((cue.text, cue.settings))
        if at is not None and kept[at].end >= cue.start:
            kept[at] = replace(kept[at], end=max(kept[at].end, cue.end))
        else:
            open_cues[cue.text, cue.settings] = len(kept)
            kept.append(cue)
    return kept


def _cut(sizes: Sequence[int], data: bytes) -> Iterator[bytes]:
    at = 0
    for size in sizes:
        yield data[at : at + size]
        at += size


def _boxes(data: bytes, start: int = 0) -> Iterator[tuple[bytes, bytes]]:
    while start + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= len(data) - start:
            return
        yield kind, data[start + 8 : start + size]
        start += size


# ---------------------------------------------------------------- 3GPP and QuickTime


def _styled(sample: bytes) -> str:
    """Length, text, and boxes of which `styl` says where it is bold, italic, underlined."""
    if len(sample) < 2:
        return ""
    length = int.from_bytes(sample[:2], "big")
    raw, faces = sample[2 : 2 + length], []
    for kind, body in _boxes(sample, 2 + length):
        if kind == b"styl":
            count = min(int.from_bytes(body[:2], "big"), (len(body) - 2) // 12)
            faces = [struct.unpack_from(">HHxxB", body, 2 + 12 * n) for n in range(count)]
    letters = [html.escape(letter, quote=False) for letter in _text(raw).rstrip("\0")]
    for start, end, face in faces:
        for bit, tag in _FACES:
            if face & bit and start < end <= len(letters):
                letters[start] = f"<{tag}>{letters[start]}"
                letters[end - 1] += f"</{tag}>"
    return "".join(letters).replace("\r\n", "\n").replace("\r", "\n")


def _text(raw: bytes) -> str:
    """UTF-16 with its mark, UTF-8, or what QuickTime wrote before."""
    if raw[:2] in (b"\xfe\xff", b"\xff\xfe"):
        return raw.decode("utf-16", "replace")
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("mac_roman")


# ---------------------------------------------------------------- WebVTT


def _webvtt(sample: bytes, start: int, end: int) -> Iterator[Cue]:
    """`vttc`: a cue with `payl`, its text, and `sttg`, its settings."""
    for kind, body in _boxes(sample):
        if kind == b"vttc":
            inside = dict(_boxes(body))
            text = inside.get(b"payl", b"").decode("utf-8", "replace").strip("\n")
            yield Cue(start, end, text, inside.get(b"sttg", b"").decode("utf-8", "replace"))


# ---------------------------------------------------------------- TTML


def _ttml(sample: bytes, start: int, end: int, shift: int) -> Iterator[Cue]:
    """A document; its times are media times, and what it shows is shown within its sample alone."""
    if b"<!DOCTYPE" in sample or b"<!ENTITY" in sample:
        raise Damaged("TTML with a document type: not read")
    try:
        root = ElementTree.fromstring(sample.strip(b"\0 \n"))
    except ElementTree.ParseError as error:
        raise Damaged(f"TTML: {error}") from None
    rates = {name.rpartition("}")[2]: value for name, value in root.attrib.items()}
    frames, ticks = _number(rates.get("frameRate"), 30.0), _number(rates.get("tickRate"), 1.0)
    for element, begin, stop in _timed(root, 0.0, None, frames, ticks):
        if element.tag.rpartition("}")[2] == "p":
            first = start if begin is None else max(start, round(begin * 1000) + shift)
            last = end if stop is None else min(end, round(stop * 1000) + shift)
            yield Cue(first, last, _lines(element))


def _number(text: str | None, default: float) -> float:
    try:
        return float(text) if text and float(text) > 0 else default
    except ValueError:
        return default


def _timed(
    element: ElementTree.Element, begin: float | None, end: float | None, frames: float, ticks: float
) -> Iterator[tuple[ElementTree.Element, float | None, float | None]]:
    """Every element with its times: those of what is inside count from the begin of what is around it."""
    base = begin or 0.0
    told, stop, length = (_seconds(element.get(name), frames, ticks) for name in ("begin", "end", "dur"))
    begin = begin if told is None else base + told
    if stop is not None:
        end = base + stop
    elif length is not None:
        end = (begin or 0.0) + length
    yield element, begin, end
    for child in element:
        yield from _timed(child, begin, end, frames, ticks)


def _seconds(text: str | None, frames: float, ticks: float) -> float | None:
    """A clock time or an offset (TTML2, 10.3.1)."""
    match = _TIMES.fullmatch(text.strip()) if text else None
    if match is None:
        return None
    hours, minutes, seconds, frame, offset, unit = match.groups()
    if unit is None:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds) + int(frame or 0) / frames
    return float(offset) * (_UNITS | {"f": 1 / frames, "t": 1 / ticks})[unit]


def _lines(element: ElementTree.Element) -> str:
    """The text of a paragraph: `br` is a new line, white space is one space."""
    parts = [_words(element.text)]
    for child in element:
        parts.append("\n" if child.tag.rpartition("}")[2] == "br" else _lines(child))
        parts.append(_words(child.tail))
    return "\n".join(line.strip() for line in "".join(parts).split("\n")).strip()


def _words(text: str | None) -> str:
    return html.escape(re.sub(r"\s+", " ", text or ""), quote=False)


# ---------------------------------------------------------------- files


def as_srt(found: Sequence[Cue]) -> str:
    """SubRip: numbered cues; of tags b, i and u are kept."""
    blocks = []
    for number, cue in enumerate(found, 1):
        text = _TAG.sub(lambda m: m[0] if _KEPT_TAG.fullmatch(m[0]) else "", cue.text)
        text = re.sub(r"\n{2,}", "\n", html.unescape(text))
        blocks.append(f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{text}\n")
    return "\n".join(blocks)


def as_vtt(found: Sequence[Cue]) -> str:
    """WebVTT: cues with their settings."""
    blocks = ["WEBVTT\n"]
    for cue in found:
        text = re.sub(r"\n{2,}", "\n", cue.text)
        settings = f" {cue.settings}" if cue.settings else ""
        blocks.append(f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}{settings}\n{text}\n")
    return "\n".join(blocks)


def _clock(milliseconds: int, point: str) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{rest:03d}"
