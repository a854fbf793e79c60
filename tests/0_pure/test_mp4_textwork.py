"""Timed text becomes SRT and WebVTT: styles, cues that go on, times of documents, and what is hostile."""

from __future__ import annotations

import struct

import pytest
from vfs_mp4 import textwork
from vfs_mp4.textwork import Cue, Job

from vfs import Damaged


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def tx3g(text: bytes, *styles: tuple[int, int, int]) -> bytes:
    rows = b"".join(
        struct.pack(">HHHBBI", start, end, 1, face, 18, 0xFFFFFFFF) for start, end, face in styles
    )
    more = box(b"styl", struct.pack(">H", len(styles)), rows) if styles else b""
    return struct.pack(">H", len(text)) + text + more


def job(kind: str, *samples: bytes, shift: int = 0) -> tuple[Job, bytes]:
    """Samples of a second each."""
    count = len(samples)
    starts, ends = tuple(range(0, 1000 * count, 1000)), tuple(range(1000, 1000 * count + 1, 1000))
    return Job(kind, tuple(map(len, samples)), starts, ends, (shift,) * count), b"".join(samples)


def test_srt_and_vtt() -> None:
    made = job(
        "tx3g", tx3g(b""), tx3g("Tor für <A> & B\r\nzwei".encode(), (0, 3, 1), (4, 7, 6)), tx3g(b"Ende")
    )
    assert textwork.subtitles(*made, "srt").decode() == (
        "1\n00:00:01,000 --> 00:00:02,000\n<b>Tor</b> <u><i>für</i></u> <A> & B\nzwei\n\n"
        "2\n00:00:02,000 --> 00:00:03,000\nEnde\n"
    )
    assert textwork.subtitles(*made, "vtt").decode() == (
        "WEBVTT\n\n00:00:01.000 --> 00:00:02.000\n<b>Tor</b> <u><i>für</i></u> &lt;A&gt; &amp; B\nzwei\n\n"
        "00:00:02.000 --> 00:00:03.000\nEnde\n"
    )
    assert textwork.subtitles(*job("tx3g"), "vtt") == b"WEBVTT\n"
    assert textwork.subtitles(*job("tx3g"), "srt") == b""


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("ü".encode(), "ü"),
        ("ü".encode("utf-16"), "ü"),
        (b"\xfe\xff\x00A", "A"),
        ("é".encode("mac_roman"), "é"),
        (b"end\0", "end"),
    ],
)
def test_encodings(raw: bytes, text: str) -> None:
    assert [cue.text for cue in textwork.cues(*job("text", tx3g(raw)))] == [text]


def test_lying_samples_are_cut() -> None:
    samples = (
        b"",
        b"\0",
        b"\0\x09abc",
        tx3g(b"abc", (1, 900, 1), (2, 1, 1)),
        tx3g(b"ab") + b"\0\0\xff\xffstyl",
    )
    assert [cue.text for cue in textwork.cues(*job("tx3g", *samples))] == ["abc", "abc", "ab"]


def test_titles_are_one_line_each() -> None:
    samples = (tx3g(b"Kick\noff <1>", (0, 4, 1)), tx3g(b""))
    assert textwork.titles(tuple(map(len, samples)), b"".join(samples)) == ["Kick off <1>", ""]


def test_webvtt_cues_go_on_over_samples() -> None:
    first = box(
        b"vttc", box(b"iden", b"1"), box(b"sttg", b"line:0"), box(b"payl", b"<i>Tor</i> &amp; <c.red>mehr")
    )
    second = box(b"vttc", box(b"payl", b"Zwei"))
    made = job("wvtt", first, first + second, box(b"vtte"), second)
    assert textwork.subtitles(*made, "vtt").decode() == (
        "WEBVTT\n\n00:00:00.000 --> 00:00:02.000 line:0\n<i>Tor</i> &amp; <c.red>mehr\n\n"
        "00:00:01.000 --> 00:00:02.000\nZwei\n\n00:00:03.000 --> 00:00:04.000\nZwei\n"
    )
    assert "<i>Tor</i> & mehr" in textwork.subtitles(*made, "srt").decode()


TTML = b"""<tt xmlns="http://www.w3.org/ns/ttml" xmlns:ttp="http://www.w3.org/ns/ttml#parameter"
 ttp:frameRate="25" ttp:tickRate="1000"><body><div begin="%s"><p begin="%s" end="%s">One<br/>two &lt;
 <span>three</span></p><p>always</p></div></body></tt>"""


@pytest.mark.parametrize(
    ("times", "start", "end"),
    [
        ((b"0s", b"00:00:10.250", b"00:00:10.750"), 250, 750),
        ((b"10s", b"0.25s", b"750ms"), 250, 750),
        ((b"0s", b"00:00:10:05", b"260f"), 200, 400),
        ((b"0s", b"10100t", b"1h"), 100, 1000),
        ((b"0s", b"nonsense", b"nonsense"), 0, 1000),
    ],
)
def test_ttml(times: tuple[bytes, bytes, bytes], start: int, end: int) -> None:
    """Its times are those of the media, here ten seconds ahead; outside of the sample nothing is shown."""
    found = textwork.joined(textwork.cues(*job("stpp", TTML % times, shift=-10_000)))
    assert Cue(start, end, "One\ntwo &lt; three") in found
    assert Cue(0, 1000, "always") in found


@pytest.mark.parametrize(
    "document",
    [b"<tt", b"", b'<!DOCTYPE tt [<!ENTITY a "a">]><tt>&a;</tt>', b"\xff\xfe\0"],
)
def test_documents_that_are_refused(document: bytes) -> None:
    with pytest.raises(Damaged, match="TTML"):
        textwork.subtitles(*job("stpp", document), "srt")
