"""HLS playlists (RFC 8216) and a DASH manifest (ISO/IEC 23009-1) over streams. Pure text."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from fractions import Fraction
from xml.sax.saxutils import quoteattr

from vfs_mp4 import timeline
from vfs_mp4.codecs import codec_string
from vfs_mp4.model import Movie, Track
from vfs_mp4.streams import Stream


def media(stream: Stream, uri: str) -> bytes:
    """The playlist of one stream: byte ranges of `uri`."""
    longest = max((s.duration for s in stream.segments), default=Fraction(0))
    lines = [
        "#EXTM3U",
        "#EXT-X-VERSION:7",
        f"#EXT-X-TARGETDURATION:{max(1, math.ceil(longest))}",
        "#EXT-X-PLAYLIST-TYPE:VOD",
        "#EXT-X-INDEPENDENT-SEGMENTS",
        f'#EXT-X-MAP:URI="{uri}",BYTERANGE="{stream.init}@0"',
    ]
    for segment in stream.segments:
        lines += [
            f"#EXTINF:{float(segment.duration):.6f},",
            f"#EXT-X-BYTERANGE:{segment.size}@{segment.offset}",
            uri,
        ]
    return "\n".join([*lines, "#EXT-X-ENDLIST", ""]).encode()


def master(movie: Movie, named: Sequence[tuple[str, Stream]]) -> bytes:
    """The playlist of all: the first stream with the others as renditions of sound."""
    (name, first), sounds = named[0], named[1:]
    lines = ["#EXTM3U", "#EXT-X-VERSION:7", "#EXT-X-INDEPENDENT-SEGMENTS"]
    for number, (rendition, stream) in enumerate(sounds):
        language = stream.tracks[0].language
        told = f',LANGUAGE="{language}"' if language != "und" else ""
        chosen = "YES" if not number else "NO"
        lines.append(
            f'#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="sound",NAME="{rendition}"{told},'
            f'DEFAULT={chosen},AUTOSELECT=YES,URI="{rendition}.m3u8"'
        )
    peak = first.peak + max((s.peak for _, s in sounds), default=0)
    average = first.average + max((s.average for _, s in sounds), default=0)
    codecs = dict.fromkeys(codec_string(s.tracks[0]) for _, s in named)
    about = [f"BANDWIDTH={max(peak, 1)}", f"AVERAGE-BANDWIDTH={max(average, 1)}"]
    about.append(f'CODECS="{",".join(codecs)}"')
    if first.tracks[0].handler == "vide":
        width, height = size_of(first.tracks[0])
        about += [f"RESOLUTION={width}x{height}", f"FRAME-RATE={float(rate_of(movie, first.tracks[0])):.3f}"]
    if sounds:
        about.append('AUDIO="sound"')
    return "\n".join([*lines, "#EXT-X-STREAM-INF:" + ",".join(about), f"{name}.m3u8", ""]).encode()


def manifest(movie: Movie, named: Sequence[tuple[str, Stream]]) -> bytes:
    """The MPD of all: on-demand profile, each stream one representation with its own index."""
    length = f"PT{float(movie.duration):.6f}S"
    parts = [
        '<?xml version="1.0" encoding="utf-8"?>',
        '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"'
        f' type="static" mediaPresentationDuration="{length}" minBufferTime="PT2S">',
        f' <Period duration="{length}">',
    ]
    for number, (name, stream) in enumerate(named):
        parts += _adaptation(movie, number, name, stream)
    return "\n".join([*parts, " </Period>", "</MPD>", ""]).encode()


def _adaptation(movie: Movie, number: int, name: str, stream: Stream) -> list[str]:
    track = stream.tracks[0]
    is_video = track.handler == "vide"
    told = {"mimeType": "video/mp4" if is_video else "audio/mp4", "codecs": codec_string(track)}
    if is_video:
        width, height = size_of(track)
        rate = rate_of(movie, track)
        told |= {"width": str(width), "height": str(height)}
        told["frameRate"] = f"{rate.numerator}/{rate.denominator}"
    told |= {"id": name, "bandwidth": str(max(stream.peak, 1))}
    language = f" lang={quoteattr(track.language)}" if not is_video and track.language != "und" else ""
    kind = "video" if is_video else "audio"
    end, offset = stream.init + stream.index - 1, int(stream.delay * track.timescale)
    return [
        f'  <AdaptationSet id="{number}" contentType="{kind}" segmentAlignment="true"'
        f' startWithSAP="1" subsegmentAlignment="true" subsegmentStartsWithSAP="1"{language}>',
        "   <Representation " + " ".join(f"{key}={quoteattr(value)}" for key, value in told.items()) + ">",
        f"    <BaseURL>{name}.mp4</BaseURL>",
        f'    <SegmentBase timescale="{track.timescale}" presentationTimeOffset="{offset}"'
        f' indexRange="{stream.init}-{end}">'
        f'<Initialization range="0-{stream.init - 1}"/></SegmentBase>',
        "   </Representation>",
        "  </AdaptationSet>",
    ]


def size_of(track: Track) -> tuple[int, int]:
    """Width and height of the coded pictures (VisualSampleEntry, ISO/IEC 14496-12 12.1.3)."""
    stsd = (track.boxes or {}).get("stsd", b"")
    width, height = struct.unpack_from(">HH", stsd.ljust(52, b"\0"), 48)
    return width, height


def rate_of(movie: Movie, track: Track) -> Fraction:
    """Pictures a second, over all."""
    shown = timeline.shown(movie, track)
    ticks = int(shown.end[-1] - shown.time[0]) if len(shown) else 0
    return Fraction(len(shown) * track.timescale, ticks).limit_denominator(1001) if ticks else Fraction(0)
