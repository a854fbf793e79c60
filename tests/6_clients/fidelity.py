"""What a mount makes of one video, held against a full decode of it: the acceptance checks, file by file.

The truth is a full decode by the same decoder, kept on disk, since some files take minutes. `check` runs
every check that fits a file and says what it found; `fidelity_page.py` runs it over all media and writes
`docs/fidelity.md`.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import random
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import mp4_sound
import numpy as np
import trio
from client_players import ffprobe
from mp4_exact import Frame, Truth, decode, decode_by_ffmpeg, truth_of
from mp4_places import MemoryPlace
from numpy.typing import NDArray
from vfs_mp4 import render, visual

Picture = NDArray[np.uint8]
NANO = 10**9
INSTANTS, RANGES, READS = 20, 6, 200
#: Clips that ffmpeg decodes as well; PyAV decodes all of them.
BY_FFMPEG = 2
#: Longest sound that is held against a full decode, in seconds.
LONGEST_SOUND = 400
#: What a clip may read, of the samples from its key frame to its last.
MOST_BYTES = Fraction(11, 10)

#: Files whose media is encrypted: nothing is derived from them, and `explain` says why.
ENCRYPTED = ("media_sample_fragmented_clearkey.mp4", "mp4ff_prog_8s_enc_dashinit.mp4")
#: Seconds by which FFmpeg shows pictures early: it moves the first one inside an edit to where that begins.
MOVED_BY_FFMPEG = {"media_sample_edit_list.mp4": Fraction(7, 600)}


# ---------------------------------------------------------------- times


def spelled(time: Fraction, *, up: bool = False) -> str:
    """A time to the nanosecond, the finest that a path can say, rounded down or up."""
    nanos = time * NANO
    whole = math.ceil(nanos) if up else math.floor(nanos)
    return f"{Decimal(whole) / NANO:f}s"


def value(text: str) -> Fraction:
    """The time that is spelled."""
    return Fraction(text.removesuffix("s"))


def instants(known: Truth, seed: str, count: int = INSTANTS) -> list[str]:
    """The first and the last frame, then frames the moment they come up, just before it, and anywhere."""
    chooser = random.Random(seed)
    times = [frame.time - known.zero for frame in known.frames]
    found = ["0s", spelled(times[-1], up=True)]
    while len(found) < count:
        time = chooser.choice(times)
        found.append(spelled(time, up=True))
        if time > 0:
            found.append(spelled(time - Fraction(1, NANO)))
        found.append(spelled(times[-1] * chooser.randrange(10**6) / 10**6))
    return found[:count]


def ranges(known: Truth, seed: str, count: int = RANGES) -> Iterator[tuple[str, str]]:
    """From anywhere or from a frame, for up to 2 s."""
    chooser = random.Random(seed)
    times = [frame.time - known.zero for frame in known.frames]
    for number in range(count):
        exactly = number % 2
        start = spelled(chooser.choice(times) if exactly else times[-1] * chooser.randrange(10**6) / 10**6)
        stop = value(start) + Fraction(chooser.randrange(1, 2_000_000), 10**6)
        yield start, spelled(Fraction(stop))


# ---------------------------------------------------------------- the truth


def source_pictures(path: Path, wanted: set[int]) -> dict[int, av.VideoFrame]:
    """Frames of a source by rank; what does not decode has none."""
    found: dict[int, av.VideoFrame] = {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        rank = 0
        for packet in container.demux(stream):
            try:
                frames = packet.decode()
            except av.error.InvalidDataError:
                continue
            for frame in frames:
                if rank in wanted:
                    found[rank] = frame
                rank += 1
    return found


def as_rgb(frame: av.VideoFrame) -> Picture:
    """A frame of a source as the mount gives it where the sample description says nothing of colours."""
    return render.to_rgb(frame, visual.Entry("", frame.width, frame.height, b""))


def gray(pixels: Picture) -> NDArray[np.float32]:
    """Some pixels, for comparing: 8K pictures are large."""
    step = max(1, pixels.shape[1] // 480)
    return pixels[::step, ::step].astype(np.float32)


class Truths:
    """Full decodes, kept in a folder by the content of the source and the decoders' versions."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def of(self, path: Path) -> Truth:
        """The truth of a file. Decodes it whole the first time."""
        data = path.read_bytes()
        versions = f"{av.__version__} {av.library_versions} {version_of('ffmpeg')}"
        name = hashlib.sha256(data + versions.encode()).hexdigest()[:32]
        kept = self._folder / f"{name}.json"
        if not kept.exists():
            known = truth_of(MemoryPlace(data, path.name))
            told = {
                "zero": str(known.zero),
                "frames": [[str(frame.time), frame.hash] for frame in known.frames],
                "by_ffmpeg": known.by_ffmpeg,
            }
            fresh = kept.with_suffix(".new")
            fresh.write_text(json.dumps(told))
            fresh.replace(kept)
        told = json.loads(kept.read_text())
        frames = tuple(Frame(Fraction(time), hash) for time, hash in told["frames"])
        return Truth(frames, Fraction(told["zero"]), tuple(told["by_ffmpeg"]))


def version_of(program: str) -> str:
    """`ffmpeg 5.1.6` and the like."""
    out = subprocess.run([program, "-version"], capture_output=True, text=True, check=True).stdout
    return " ".join(out.split()[:3:2]).partition("-")[0]


def put_out(path: Path) -> list[str]:
    """Hashes of the frames that PyAV decodes; as in the truth, what does not decode is left out."""
    return [frame.hash for frame in decode(path.read_bytes())]


# ---------------------------------------------------------------- one file


@dataclass
class Found:
    """What was found of a file. figures: by check `right/tried`, or in words; wrong: what is not as it should
    be, in words."""

    name: str
    about: str = ""
    figures: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def count(self, check: str, right: int, tried: int, what: Sequence[str] = ()) -> None:
        """A check of several cases, and those that were wrong."""
        self.figures[check] = f"{right}/{tried}"
        self.wrong += [f"{check}: {case}" for case in what]

    def told(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A stored video and where it is mounted. seed: chooses instants and ranges."""

    name: str
    source: Path
    mounted: Path
    truths: Truths
    seed: str

    @property
    def folder(self) -> Path:
        """The companion folder."""
        return self.mounted.with_name(f"{self.mounted.name}@")

    def info(self) -> Any:
        """What `info.json` tells of the file."""
        return json.loads((self.folder / "info.json").read_text())["format"]

    def at(self, selection: str) -> Path:
        """A derived name."""
        return self.mounted.with_name(f"{self.mounted.name}@{selection}")


def check(case: Case) -> Found:
    """Every check that fits the file."""
    found = Found(case.name, about(case.source))
    if case.name in ENCRYPTED:
        encrypted(case, found)
        return found
    with av.open(str(case.source)) as container:
        kinds = {stream.type for stream in container.streams}
    if "video" in kinds:
        _tried(found, pictures, case)
    if "audio" in kinds:
        _tried(found, sounds, case)
    _tried(found, reads, case)
    return found


def pictures(case: Case, found: Found) -> None:
    """The checks that need a decode of all pictures."""
    known = case.truths.of(case.source)
    known = replace(known, zero=known.zero - MOVED_BY_FFMPEG.get(case.name, Fraction(0)))
    for step in (frames, clips, ends, amounts, likeness, streams):
        _tried(found, step, case, known)


def _tried(found: Found, step: Callable[..., None], case: Case, *arguments: Any) -> None:
    """A check that ends in an error found that."""
    try:
        step(case, found, *arguments)
    except Exception as error:
        found.wrong.append(f"{step.__name__}: {type(error).__name__}: {error}")


def about(path: Path) -> str:
    """Codecs, size and form in a few words."""
    try:
        with av.open(str(path), "r") as container:
            words = [f"{s.codec_context.name} {s.width}x{s.height}" for s in container.streams.video[:1]]
            words += [s.codec_context.name for s in container.streams.audio]
    except av.error.FFmpegError as error:
        return f"FFmpeg: {error.strerror}"
    return ", ".join(dict.fromkeys(words)) or "no pictures and no sound"


# ---------------------------------------------------------------- the checks


def frames(case: Case, found: Found, known: Truth) -> None:
    """A1: an instant is the frame shown then, as a perfect read to the bit, and as pixels."""
    times = instants(known, case.seed)
    wanted = [known.at(value(time)) for time in times]
    near = {rank + step for rank in wanted for step in (-1, 0, 1)}
    pictures = {rank: gray(as_rgb(frame)) for rank, frame in source_pictures(case.source, near).items()}
    wrong, wrong_pixels = [], []
    for at, rank in zip(times, wanted, strict=True):
        read = case.at(f"{at}.mp4")
        index = int(os.getxattr(read, "user.reelfs.start_frame_index"))
        shown = put_out(read)
        if not (index < len(shown) and shown[index] == known.frames[rank].hash):
            wrong.append(f"{at} (frame {rank}) decodes to another frame")
        pixels = gray(np.load(case.at(f"{at}.npy")))
        apart = {r: float(np.abs(pictures[r] - pixels).mean()) for r in pictures if abs(r - rank) <= 1}
        # Neighbours may look the same to the bit; what else differs may only be how colours are taken.
        if apart[rank] > min(apart.values()) + 1e-6 or apart[rank] > 12:
            wrong_pixels.append(f"{at} (frame {rank}) shows another picture")
    found.count("instants", len(times) - len(wrong), len(times), wrong)
    found.count("pixels", len(times) - len(wrong_pixels), len(times), wrong_pixels)


def clips(case: Case, found: Found, known: Truth) -> None:
    """A2: ranges are their frames and no others, in order; from the key; as fragments; by both decoders."""
    wrong: dict[str, list[str]] = {"exact": [], "ffmpeg": [], "key": [], "fragments": []}
    both = len(known.by_ffmpeg) == len(known.frames)
    for number, (start, stop) in enumerate(ranges(known, case.seed)):
        span = f"{start}-{stop}"
        first, after = known.between(value(start), value(stop))
        hashes = known.hashes(first, after)
        if put_out(case.at(f"{span}.mp4")) != hashes:
            wrong["exact"].append(span)
        if number < BY_FFMPEG and both:
            shown = decode_by_ffmpeg(case.at(f"{span}.mp4").read_bytes())
            wrong["ffmpeg"] += [span] * (shown != list(known.by_ffmpeg[first:after]))
        whole = put_out(case.at(f"{span}.key.mp4"))
        enough = len(hashes) <= len(whole) <= after
        if not enough or whole != known.hashes(after - len(whole), after):
            wrong["key"].append(span)
        fragments = put_out(case.at(f"{span}.frag.mp4"))
        index = int(os.getxattr(case.at(f"{span}.frag.mp4"), "user.reelfs.start_frame_index"))
        if fragments[index : index + len(hashes)] != hashes:
            wrong["fragments"].append(span)
    for kind, cases in wrong.items():
        tried = RANGES if kind != "ffmpeg" else BY_FFMPEG
        if kind == "ffmpeg" and not both:
            found.figures[kind] = f"{len(known.by_ffmpeg)} of {len(known.frames)} frames of the source"
        else:
            found.count(kind, tried - len(cases), tried, cases)


def ends(case: Case, found: Found, known: Truth) -> None:
    """A9: the last frame to the end, and nothing beyond."""
    duration, wrong = case.info()["duration"], []
    for beyond in (duration + 0.001, duration + 1000):
        for form in ("jpg", "mp4"):
            try:
                case.at(f"{beyond:.6f}s.{form}").stat()
                wrong.append(f"{beyond:.6f}s.{form} is there")
            except OSError as error:
                if error.errno != errno.ENOENT:
                    wrong.append(f"{beyond:.6f}s.{form}: {error.strerror}")
    found.count("beyond", 4 - len(wrong), 4, wrong)


def amounts(case: Case, found: Found, known: Truth) -> None:
    """A4: a clip reads the samples from its key frame to its last, and hardly more."""
    place = MemoryPlace(case.source.read_bytes(), case.name)
    seen, heard = packets(case.source)
    worst = Fraction(0)
    for start, stop in ranges(known, case.seed):
        first, after = known.between(value(start), value(stop))
        low, high = known.frames[first].time, known.frames[after - 1].time
        need = _group_bytes(seen, low, high)
        need += sum(p.size for p in heard if low - LEAD <= p.time <= high + Fraction(3, 20))
        data = trio.run(_media_bytes, place, f"{start}-{stop}.mp4")
        worst = max(worst, Fraction(data, max(need, 1)))
    found.figures["bytes"] = f"{float(worst):.2f}"
    if worst > MOST_BYTES:
        found.wrong.append(f"bytes: a clip reads {float(worst):.2f} times what it needs")


#: Seconds before a cut at which a decoder of sound must begin.
LEAD = Fraction(1, 5)


@dataclass(frozen=True, slots=True)
class Packet:
    """One coded sample. time: seconds."""

    size: int
    time: Fraction
    key: bool


def packets(path: Path) -> tuple[list[Packet], list[Packet]]:
    """Those of the first video track, and those of all sound, in the order of decoding."""
    pictures: list[Packet] = []
    heard: list[Packet] = []
    with av.open(str(path), "r") as container:
        first = container.streams.video[0].index
        for packet in container.demux():
            stream = packet.stream
            if not packet.size or packet.pts is None or not (stream.type == "audio" or stream.index == first):
                continue
            one = Packet(packet.size, packet.pts * packet.time_base, packet.is_keyframe)
            (heard if stream.type == "audio" else pictures).append(one)
    return pictures, heard


async def _media_bytes(place: MemoryPlace, name: str) -> int:
    from vfs_mp4.plugin import Videos

    from vfs import Inline, Spliced

    node = await Videos().resolve(place, name)
    assert isinstance(node, Spliced)
    return sum(span.length for span in node.layout.spans if not isinstance(span, Inline))


def _group_bytes(pictures: list[Packet], low: Fraction, high: Fraction) -> int:
    """From the key packet that what is shown from `low` to `high` is decoded from, to the last of it."""
    inside = [row for row, p in enumerate(pictures) if low <= p.time <= high]
    if not inside:
        return 0
    keys = [row for row, p in enumerate(pictures) if p.key and row <= inside[0]]
    while keys and any(row > keys[-1] and pictures[row].time < pictures[keys[-1]].time for row in inside):
        keys.pop()
    return sum(p.size for p in pictures[keys[-1] if keys else 0 : inside[-1] + 1])


#: What a clip has in common with its source, as ffprobe tells it.
_STREAM = (
    *("codec_name", "profile", "width", "height", "sample_aspect_ratio", "display_aspect_ratio", "pix_fmt"),
    *("color_range", "color_space", "color_transfer", "color_primaries", "chroma_location", "field_order"),
    *("sample_rate", "channels", "channel_layout", "side_data_list"),
)


def likeness(case: Case, found: Found, known: Truth) -> None:
    """A6: rotation, aspect, colours, HDR and Dolby Vision, language, channels are the source's."""
    one, other = (_likes(path) for path in (case.source, case.at("0s-3s.mp4")))
    wrong = [
        f"{key} {have[key]} instead of {want[key]}"
        for have, want in zip(other, one, strict=False)
        for key in want
        if have[key] != want[key]
    ]
    if len(other) > len(one) or not other:
        wrong.append(f"{len(other)} streams instead of {len(one)}")
    found.figures["properties"] = "same" if not wrong else "differ"
    found.wrong += [f"properties: {case}" for case in wrong]


def _likes(path: Path) -> list[dict[str, Any]]:
    streams = ffprobe(path, "-show_streams")["streams"]
    kept = [s for s in streams if s["codec_type"] == "video"][:1]
    kept += [s for s in streams if s["codec_type"] == "audio"]
    return [
        {key: s.get(key) for key in _STREAM} | {"language": s.get("tags", {}).get("language")} for s in kept
    ]


def streams(case: Case, found: Found, known: Truth) -> None:
    """A10: streams are made of boxes in the order that browsers want."""
    wrong = []
    start, stop = next(ranges(known, case.seed))
    paths = [case.folder / "hls" / "video" / "stream.mp4"]
    if case.info()["form"] != "fragmented":
        paths.append(case.at(f"{start}-{stop}.frag.mp4"))
    for path in paths:
        wrong += [f"{path.name}: {problem}" for problem in box_problems(path.read_bytes())]
    found.count("boxes", len(paths) - len(wrong), len(paths), wrong)


def box_problems(data: bytes) -> list[str]:
    """What a browser would not take: order of boxes in a fragment, a 64-bit mdat, a missing brand."""
    top = list(boxes(data))
    names = [kind for kind, _, _ in top]
    problems = []
    if names[:2] != ["ftyp", "moov"]:
        problems.append(f"begins with {names[:2]}")
    brands = {data[at : at + 4] for at in range(top[0][1], top[0][2], 4)}
    if not brands & {b"iso5", b"iso6"}:
        problems.append(f"brands {sorted(brands)}")
    for kind, low, high in top:
        if kind == "mdat" and low - 8 >= 0 and data[low - 8 : low - 4] == b"\0\0\0\1":
            problems.append("an mdat of 64 bits")
        if kind != "moof":
            continue
        for inner, begin, end in boxes(data, low, high):
            order = [name for name, _, _ in boxes(data, begin, end)] if inner == "traf" else []
            if order and [n for n in order if n in ("tfhd", "tfdt", "trun")][:2] != ["tfhd", "tfdt"]:
                problems.append(f"a fragment of {order}")
    return problems


def boxes(data: bytes, low: int = 0, high: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(4cc, payload start, payload end)."""
    high = len(data) if high is None else high
    while low + 8 <= high:
        size, kind = struct.unpack_from(">I4s", data, low)
        head = 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, low + 8)[0], 16
        if size < head:
            return
        yield kind.decode("latin-1"), low + head, min(low + size, high)
        low += size


def sounds(case: Case, found: Found) -> None:
    """The whole sound and three ranges, decoded, are those of a full decode, sample for sample."""
    data = case.source.read_bytes()
    with av.open(io.BytesIO(data), "r") as container:
        count = len(container.streams.audio)
        if container.duration and container.duration / 1e6 > LONGEST_SOUND:
            found.figures["sound"] = "too long to compare"
            return
    wrong = []
    for number in range(count):
        path = case.folder / ("audio.wav" if not number else f"audio-{number + 1}.wav")
        samples = mp4_sound.wav_samples(path.read_bytes())[1]
        known = mp4_sound.decode(data, number)
        zero = _zero(case, known.rate)
        # The time of FFmpeg's first sample is rounded to a tick, which may be a sample away.
        lines = (known.line(len(samples), start=zero + step) for step in (0, 1, -1))
        if not any((samples == line).all() for line in lines):
            wrong.append(f"track {number + 1} differs")
    found.count("sound", count - len(wrong), count, wrong)


def _zero(case: Case, rate: int) -> int:
    """The sample of FFmpeg's line at which path times begin."""
    from vfs_mp4 import source

    movie = trio.run(source.open_movie, MemoryPlace(case.source.read_bytes(), case.name))
    return int(movie.zero * rate)


def reads(case: Case, found: Found) -> None:
    """A3: the size told is the size read, and any part read at any time is a slice of the whole."""
    duration = case.info()["duration"]
    path = case.at(f"{duration / 3:.3f}s-{duration / 3 + 2:.3f}s.mp4")
    size, chooser = path.stat().st_size, random.Random(case.seed)
    got: dict[tuple[int, int], bytes] = {}

    def some(places: Sequence[tuple[int, int]]) -> None:
        with path.open("rb", buffering=0) as file:
            for at, length in places:
                got[at, length] = os.pread(file.fileno(), length, at)

    lengths = (1, 7, 4096, 65_537)
    asked = [(chooser.randrange(size + 10), chooser.choice(lengths)) for _ in range(READS)]
    backwards = [(at, 10_007) for at in range(size - size % 10_007, -1, -10_007)][:READS]
    readers = [threading.Thread(target=some, args=(places,)) for places in (asked, backwards)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    data = path.read_bytes()
    wrong = [str(place) for place, part in got.items() if part != data[place[0] : sum(place)]]
    if len(data) != size:
        wrong.append(f"{len(data)} bytes, {size} told")
    found.count("reads", len(got) - len(wrong), len(got), wrong[:3])


def encrypted(case: Case, found: Found) -> None:
    """Served as it is stored; what is derived answers 'not supported', and `explain` says why."""
    wrong = []
    for selection in ("0s.jpg", "0s.mp4", "0s-1s.mp4", "0s-1s.frag.mp4", "0s-1s.npy"):
        try:
            case.at(selection).stat()
            wrong.append(f"{selection} is there")
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                wrong.append(f"{selection}: {error.strerror}")
    if case.mounted.read_bytes() != case.source.read_bytes():
        wrong.append("the stored file differs")
    found.count("refused", 6 - len(wrong), 6, wrong)


# ---------------------------------------------------------------- damaged files

#: What is asked of a damaged file.
ASKED = ("0s.jpg", "0.5s.npy", "0s.mp4", "0s-1s.mp4", "0s-1s.frag.mp4", "k0.png")


def damaged(case: Case, memory: Callable[[], int]) -> Found:
    """A5: an answer or an error, soon, and without much memory. memory: bytes resident of the daemon."""
    found = Found(case.name, about(case.source))
    before, slowest, answers, errors = memory(), 0.0, 0, []
    for selection in ASKED:
        began = time.monotonic()
        try:
            answers += bool(case.at(selection).read_bytes())
        except OSError as error:
            errors.append(errno.errorcode[error.errno or 0])
        slowest = max(slowest, time.monotonic() - began)
    grown = (memory() - before) >> 20
    kinds = ", ".join(sorted(set(errors)))
    told = f"{answers} answers, {len(errors)} errors" + f" ({kinds})" * bool(kinds)
    found.figures["damaged"] = f"{told}; the slowest after {slowest:.1f} s, {max(grown, 0)} MiB more"
    if grown >= 64:
        found.wrong.append(f"damaged: the daemon grew by {grown} MiB")
    if slowest > 5:  # A second is the aim; the machine may be busy.
        found.wrong.append(f"damaged: an answer took {slowest:.1f} s")
    if case.mounted.read_bytes() != case.source.read_bytes():
        found.wrong.append("damaged: the stored file differs")
    return found
