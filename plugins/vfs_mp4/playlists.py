"""HLS playlists (RFC 8216) and a DASH manifest (ISO/IEC 23009-1) over streams. Pure text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from xml.sax.saxutils import quoteattr

from vfs import MediaError
from vfs_mp4 import codecs, shape, soundformat, timeline, visual
from vfs_mp4.model import Movie, Track
from vfs_mp4.streams import Stream

#: The file of a stream, and its playlist, in a folder of its own beside the master.
STREAM, PLAYLIST = "stream.mp4", "playlist.m3u8"
_XMLNS = "urn:mpeg:dash:schema:mpd:2011"
_PROFILE = "urn:mpeg:dash:profile:isoff-on-demand:2011"
_CHANNELS = "urn:mpeg:dash:23003:3:audio_channel_configuration:2011"


@dataclass(frozen=True, eq=False)
class Rendition:
    """A stream of one track under the name of its folder: `video`, `audio`, `audio-2`."""

    name: str
    movie: Movie
    stream: Stream

    @property
    def track(self) -> Track:
        """The stored track that it is made of."""
        number = self.stream.tracks[0].track_id
        return next(track for track in self.movie.tracks if track.track_id == number)

    @property
    def codec(self) -> str:
        """The RFC 6381 string. Raises Unsupported, Damaged."""
        return codecs.codec_string(codecs.described(self.track))

    @property
    def is_video(self) -> bool:
        """Pictures, not sound."""
        return self.track.handler == "vide"

    @property
    def language(self) -> str:
        """Three letters, "" where it is not known."""
        return "" if self.track.language == "und" else self.track.language

    @property
    def size(self) -> tuple[int, int]:
        """Width and height at which the pictures are looked at. Raises Damaged."""
        stsd, tkhd = ((self.track.boxes or {}).get(kind, b"") for kind in ("stsd", "tkhd"))
        entry = visual.read_entry(visual.Job(self.track.codec, stsd, tkhd, 1, (), (), 0, 1))
        width, height = shape.upright(entry, tkhd)
        return round(width), round(height)

    @property
    def rate(self) -> Fraction:
        """Pictures a second, from first to last: how long the last stays is often cut."""
        time = timeline.shown(self.movie, self.track).time
        ticks = int(time[-1] - time[0])
        return Fraction((len(time) - 1) * self.track.timescale, ticks or 1).limit_denominator(1001)

    @property
    def channels(self) -> tuple[int, int] | None:
        """(channels, samples a second) of sound, None where only its decoder knows."""
        try:
            found = soundformat.read(self.track.codec, (self.track.boxes or {}).get("stsd", b""))
        except MediaError:
            return None
        return (found.channels, found.rate) if found.known else None


# ---------------------------------------------------------------- HLS


def media(stream: Stream) -> bytes:
    """The playlist of one stream: its fragments as byte ranges."""
    # Cut at microseconds of the whole, so that rounding does not add up.
    edges = [0, *(round(Fraction(t, stream.timescale) * 10**6) for t in stream.time[1:].tolist())]
    lengths = [after - before for before, after in itertools.pairwise(edges)]
    lines = ["#EXTM3U", "#EXT-X-VERSION:7"]
    lines += [f"#EXT-X-TARGETDURATION:{max(1, math.ceil(max(lengths) / 10**6))}", "#EXT-X-PLAYLIST-TYPE:VOD"]
    lines += ["#EXT-X-INDEPENDENT-SEGMENTS"] * independent([stream])
    lines.append(f'#EXT-X-MAP:URI="{STREAM}",BYTERANGE="{stream.init}@0"')
    for length, size, offset in zip(lengths, stream.size.tolist(), stream.offset.tolist(), strict=True):
        lines += [f"#EXTINF:{length // 10**6}.{length % 10**6:06d},"]
        lines += [f"#EXT-X-BYTERANGE:{size}@{offset}", STREAM]
    return "\n".join([*lines, "#EXT-X-ENDLIST", ""]).encode()


def independent(streams: Sequence[Stream]) -> bool:
    """Whether every fragment can be decoded without those before it."""
    return all(bool((stream.access == 1).all()) for stream in streams)


def master(renditions: Sequence[Rendition]) -> bytes:
    """The playlist of all: the first stream, the others as renditions of its sound."""
    first, sounds = renditions[0], renditions[1:]
    lines = ["#EXTM3U", "#EXT-X-VERSION:7"]
    lines += ["#EXT-X-INDEPENDENT-SEGMENTS"] * independent([r.stream for r in renditions])
    lines += [_sound(rendition, default=not number) for number, rendition in enumerate(sounds)]
    peak = first.stream.peak + max((r.stream.peak for r in sounds), default=0)
    average = first.stream.average + max((r.stream.average for r in sounds), default=0)
    names = dict.fromkeys(r.codec for r in renditions)
    about = [f"BANDWIDTH={max(peak, 1)}", f"AVERAGE-BANDWIDTH={max(average, 1)}"]
    about.append(f'CODECS="{",".join(names)}"')
    if first.is_video:
        about += ["RESOLUTION={}x{}".format(*first.size)]
        about += [f"FRAME-RATE={float(first.rate):.3f}"] * bool(first.rate)
    about += ['AUDIO="sound"'] * bool(sounds)
    return "\n".join(
        [*lines, f"#EXT-X-STREAM-INF:{','.join(about)}", f"{first.name}/{PLAYLIST}", ""]
    ).encode()


def _sound(rendition: Rendition, *, default: bool) -> str:
    language = [f'LANGUAGE="{rendition.language}"'] * bool(rendition.language)
    channels = [f'CHANNELS="{rendition.channels[0]}"'] if rendition.channels else []
    chosen = "YES" if default else "NO"
    return ",".join(
        [
            '#EXT-X-MEDIA:TYPE=AUDIO,GROUP-ID="sound"',
            f'NAME="{rendition.name}"',
            *language,
            f"DEFAULT={chosen},AUTOSELECT=YES",
            *channels,
            f'URI="{rendition.name}/{PLAYLIST}"',
        ]
    )


# ---------------------------------------------------------------- DASH


def manifest(renditions: Sequence[Rendition]) -> bytes:
    """The MPD of all: on-demand profile, each stream one representation with its own index."""
    end = max(Fraction(int(r.stream.time[-1]), r.stream.timescale) for r in renditions)
    longest = max((max(r.stream.seconds) for r in renditions), default=Fraction(2))
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<MPD xmlns="{_XMLNS}" profiles="{_PROFILE}" type="static"'
        f' mediaPresentationDuration="{_duration(end)}" minBufferTime="{_duration(longest)}">',
        " <Period>",
    ]
    for number, rendition in enumerate(renditions):
        lines += _adaptation(number, rendition)
    return "\n".join([*lines, " </Period>", "</MPD>", ""]).encode()


def _duration(seconds: Fraction) -> str:
    return f"PT{float(seconds):.6f}S"


def _adaptation(number: int, rendition: Rendition) -> list[str]:
    stream, is_video = rendition.stream, rendition.is_video
    access = int(stream.access.max()) if bool(stream.access.all()) else 0
    about = {"id": str(number), "contentType": "video" if is_video else "audio"}
    about |= {"lang": rendition.language} if rendition.language else {}
    about |= {"subsegmentAlignment": "true"}
    about |= {"subsegmentStartsWithSAP": str(access)} if access else {}
    told = {"id": rendition.name, "bandwidth": str(max(stream.peak, 1)), "codecs": rendition.codec}
    told["mimeType"] = "video/mp4" if is_video else "audio/mp4"
    channels: list[str] = []
    if is_video:
        width, height = rendition.size
        rate = rendition.rate
        told |= {"width": str(width), "height": str(height), "sar": "1:1"}
        told |= {"frameRate": f"{rate.numerator}/{rate.denominator}"} if rate else {}
    elif rendition.channels:
        told["audioSamplingRate"] = str(rendition.channels[1])
        value = f'schemeIdUri="{_CHANNELS}" value="{rendition.channels[0]}"'
        channels.append(f"    <AudioChannelConfiguration {value}/>")
    index = f"{stream.init}-{stream.init + stream.index - 1}"
    return [
        f"  <AdaptationSet {_attributes(about)}>",
        f"   <Representation {_attributes(told)}>",
        *channels,
        f"    <BaseURL>{rendition.name}/{STREAM}</BaseURL>",
        f'    <SegmentBase indexRange="{index}" timescale="{stream.timescale}">'
        f'<Initialization range="0-{stream.init - 1}"/></SegmentBase>',
        "   </Representation>",
        "  </AdaptationSet>",
    ]


def _attributes(values: dict[str, str]) -> str:
    return " ".join(f"{key}={quoteattr(value)}" for key, value in values.items())
