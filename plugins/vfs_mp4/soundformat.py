"""What comes out of a sound track's decoder, told by its sample description beforehand. Pure.

Sample entries: ISO/IEC 14496-12 12.2.3 and the QuickTime File Format (versions 1 and 2). What a stream alone
can tell (spectral band replication that is not announced, MP3) is `None` here and asked of the decoder.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from vfs import Damaged, MediaError, Unsupported

#: Sampling frequencies by index (ISO/IEC 14496-3, table 1.18).
_AAC_RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
_AAC_CHANNELS = {1: 1, 2: 2, 3: 3, 4: 4, 5: 5, 6: 6, 7: 8, 11: 7, 12: 8, 14: 8}
#: AAC of a rate up to this may carry band replication nobody announced: twice the rate then comes out.
_MAYBE_SBR = 24_000
#: Audio object types (ISO/IEC 14496-3, table 1.17): Main, LC, SSR, LTP; replication; parametric stereo.
_GENERAL, _SBR, _PS = (1, 2, 3, 4), 5, 29
#: Decoder by object type in esds (ISO/IEC 14496-1, table 5).
_OBJECT_TYPES = {0x40: "aac", 0x66: "aac", 0x67: "aac", 0x68: "aac", 0x69: "mp3float", 0x6B: "mp3float"} | {
    0xA5: "ac3", 0xA6: "eac3", 0xA9: "dca", 0xAC: "dca", 0xDD: "vorbis", 0xAD: "opus"
}  # fmt: skip
#: Decoder by sample entry 4cc, where it needs no more than its packets.
_PLAIN = {
    "ec-3": "eac3", ".mp3": "mp3float", "ima4": "adpcm_ima_qt",
    "samr": "amrnb", "sawb": "amrwb", "QDM2": "qdm2", "dtsc": "dca", "dtsh": "dca", "dtsl": "dca",
}  # fmt: skip
#: Uncompressed sound of QuickTime, which MP4 does not know.
QUICKTIME_PCM = frozenset(("sowt", "twos", "raw ", "NONE", "in24", "in32", "fl32", "fl64", "lpcm"))
_PCM = QUICKTIME_PCM | {"ipcm", "fpcm"}
_LAWS = {"ulaw": "m", "alaw": "a"}
#: What needs no decoder.
UNCOMPRESSED = _PCM | _LAWS.keys()
_STATELESS = frozenset(("alac", "flac"))
#: Most channels and highest rate that are taken for real.
MAX_CHANNELS, MAX_RATE = 64, 768_000


@dataclass(frozen=True, slots=True)
class Pcm:
    """How samples are stored: `i` signed, `u` unsigned, `f` float, `m` mu-law, `a` A-law; width in bytes."""

    kind: str
    width: int
    big: bool


@dataclass(frozen=True, slots=True)
class Format:
    """A decoder and what it puts out.

    decoder: its name in libavcodec, "" for PCM. setup: what it needs beforehand. rate: samples a second;
    channels: at once; frame: samples of a packet, where all have the same number, else 0. known: rate and
    channels are certain, not the sample entry's guess. pcm: of sound that needs no decoder. skip: samples
    at the front of the stream that are never heard.
    """

    decoder: str
    rate: int
    channels: int
    setup: bytes = b""
    frame: int = 0
    known: bool = True
    pcm: Pcm | None = None
    skip: int = 0

    @property
    def lead(self) -> int:
        """Packets to decode before the first that is to sound as in a decode of the whole.

        Measured: 2 for AAC-LC, AC-3 and E-AC-3 (overlap), 5 for MP3 of 64 kbit/s (bit reservoir). Unannounced
        and announced replication wait for a header that comes about twice a second. Opus asks for 80 ms (RFC
        7845, 4.6), but is the same to the bit after half a second to a second only. What keeps no state
        needs none.
        """
        if not self.decoder or self.decoder in _STATELESS:
            return 0
        if self.decoder == "opus":
            return 50
        if self.decoder == "aac":
            return 2 if self.known and self.frame <= 1024 else 24
        return 2 if self.decoder in ("ac3", "eac3") else 10


@dataclass(frozen=True, slots=True)
class _Entry:
    """A sound sample entry. bits: of a sample; flags: of version 2; boxes: payloads by 4cc, `wave` opened."""

    codec: str
    channels: int
    rate: int
    bits: int
    flags: int
    boxes: dict[str, bytes]


def read(codec: str, stsd: bytes, description: int = 1) -> Format:
    """The format of one sample description (1-based). Raises Damaged, Unsupported (no such decoder)."""
    entry = _entry(codec, stsd, description)
    if codec in _PCM:
        found = _pcm(entry)
    elif codec in _LAWS:
        found = Format("", entry.rate, entry.channels, frame=1, pcm=Pcm(_LAWS[codec], 1, True))
    elif codec == "mp4a":
        found = _mp4a(entry)
    elif codec in _READERS:
        found = _READERS[codec](entry)
    elif codec in _PLAIN:
        found = Format(_PLAIN[codec], entry.rate, entry.channels, known=False)
    else:
        raise Unsupported(f"no decoder for sound of type {codec!r}")
    if not 0 < found.channels <= MAX_CHANNELS or not 0 < found.rate <= MAX_RATE:
        raise Damaged(f"sound of {found.channels} channels and {found.rate} samples a second")
    return found


def lead(codec: str, stsd: bytes) -> int:
    """`Format.lead` of the first sample description; of AAC-LC where it cannot be read."""
    try:
        return read(codec, stsd).lead
    except MediaError:
        return 2


def _entry(codec: str, stsd: bytes, description: int) -> _Entry:
    entries = list(_children(stsd, 16, len(stsd)))
    if not 1 <= description <= len(entries):
        raise Damaged(f"there is no sample description {description}")
    _, start, stop = entries[description - 1]
    if stop - start < 28:
        raise Damaged("the sample description is cut short")
    version, channels, bits, rate = struct.unpack_from(">8xH6xHH4xI", stsd, start)
    rate, flags, inner = rate >> 16, 0, start + 28
    # Version 1 of ISO/IEC 14496-12 says so in stsd, and has no more fields; QuickTime's has.
    if version == 1 and stsd[8] == 0:
        inner += 16
    elif version == 2 and stop - start >= 64:
        exact, channels, _, bits, flags = struct.unpack_from(">dIIII", stsd, start + 32)
        rate, inner = int(exact) if 0 < exact < MAX_RATE else rate, start + 64
    return _Entry(codec, channels, rate, bits, flags, _boxes(stsd, inner, stop))


def _boxes(data: bytes, start: int, stop: int) -> dict[str, bytes]:
    """Payloads by 4cc, those inside QuickTime's `wave` among them."""
    found: dict[str, bytes] = {}
    for kind, low, high in _children(data, start, stop):
        if kind == b"wave":
            found |= _boxes(data, low, high)
        else:
            found.setdefault(kind.decode("latin-1"), data[low:high])
    return found


def _children(data: bytes, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(4cc, payload start, payload end) of small boxes."""
    while start + 8 <= stop:
        size, kind = struct.unpack_from(">I4s", data, start)
        if not 8 <= size <= stop - start:
            return
        yield kind, start + 8, start + size
        start += size


# ---------------------------------------------------------------- uncompressed


def _pcm(entry: _Entry) -> Format:
    kind = {
        "lpcm": _lpcm, "ipcm": _iso_pcm, "fpcm": _iso_pcm,
    }.get(entry.codec, _quicktime_pcm)(entry)  # fmt: skip
    if (kind.kind == "f" and kind.width not in (4, 8)) or kind.width not in (1, 2, 3, 4, 8):
        raise Unsupported(f"{entry.codec} of {8 * kind.width} bits")
    return Format("", entry.rate, entry.channels, frame=1, pcm=kind)


def _quicktime_pcm(entry: _Entry) -> Pcm:
    # `enda` 1: the samples of in24, in32, fl32 and fl64 are little endian.
    big = entry.boxes.get("enda", b"\0\0")[:2] != b"\0\1"
    fixed = {"in24": ("i", 3), "in32": ("i", 4), "fl32": ("f", 4), "fl64": ("f", 8)}.get(entry.codec)
    if fixed:
        return Pcm(*fixed, big)
    width = (entry.bits or 8) // 8
    if width == 1:
        return Pcm("u" if entry.codec in ("raw ", "NONE") else "i", 1, True)
    return Pcm("i", width, entry.codec != "sowt")


def _lpcm(entry: _Entry) -> Pcm:
    """Flags of Core Audio: 1 float, 2 big endian, 4 signed."""
    kind = "f" if entry.flags & 1 else "i" if entry.flags & 4 else "u"
    return Pcm(kind, entry.bits // 8, bool(entry.flags & 2))


def _iso_pcm(entry: _Entry) -> Pcm:
    """`pcmC` (ISO/IEC 23003-5): version and flags, format flags (1: little endian), bits of a sample."""
    setup = entry.boxes.get("pcmC", b"").ljust(6, b"\0")
    return Pcm("f" if entry.codec == "fpcm" else "i", setup[5] // 8, not setup[4] & 1)


# ---------------------------------------------------------------- AAC and what else is in mp4a


def _mp4a(entry: _Entry) -> Format:
    if "esds" not in entry.boxes:
        raise Damaged("mp4a without esds")
    kind, setup = esds(entry.boxes["esds"])
    decoder = _OBJECT_TYPES.get(kind)
    if decoder is None:
        raise Unsupported(f"no decoder for MPEG-4 sound of object type {kind:#x}")
    if decoder != "aac":
        return Format(decoder, entry.rate, entry.channels, setup, known=False)
    return _aac(entry, setup)


def _aac(entry: _Entry, setup: bytes) -> Format:
    """What the set-up tells for certain, else the sample entry's guess."""
    try:
        told = _told(setup, _Bits(setup))
    except EOFError:
        told = None
    return told or Format("aac", entry.rate, entry.channels, setup, known=False)


def _told(setup: bytes, bits: _Bits) -> Format | None:
    """AudioSpecificConfig (ISO/IEC 14496-3, 1.6.2.1); None where only the stream can tell."""
    kind, rate, layout = bits.object_type(), bits.rate(), bits.take(4)
    stereo = kind == _PS
    # The rate with band replication; 0: there is none; None: it is not said.
    wide = None
    if kind in (_SBR, _PS):
        wide, kind = bits.rate(), bits.object_type()
    if kind not in _GENERAL or layout not in _AAC_CHANNELS:
        return None
    length = 960 if bits.take(1) else 1024
    if bits.take(1):
        bits.take(14)
    bits.take(1)
    if wide is None and bits.left >= 17 and bits.take(11) == 0x2B7 and bits.object_type() == _SBR:
        wide = bits.rate() if bits.take(1) else 0
    channels = _AAC_CHANNELS[layout]
    if wide is None and rate <= _MAYBE_SBR:
        return None
    if not wide:
        return Format("aac", rate, channels, setup, length)
    # One channel may become two by parametric stereo, announced or not; the rate may also stay as it is.
    if wide != 2 * rate or (channels == 1 and not stereo):
        return None
    return Format("aac", wide, max(channels, 1 + stereo), setup, 2 * length)


class _Bits:
    """Reads a few bits at a time; EOFError past the end."""

    def __init__(self, data: bytes) -> None:
        self._value, self.left = int.from_bytes(data, "big"), 8 * len(data)

    def take(self, count: int) -> int:
        """The next bits as a number."""
        if count > self.left:
            raise EOFError
        self.left -= count
        return self._value >> self.left & (1 << count) - 1

    def object_type(self) -> int:
        """audioObjectType, with its escape."""
        kind = self.take(5)
        return 32 + self.take(6) if kind == 31 else kind

    def rate(self) -> int:
        """samplingFrequency, by index or in full."""
        index = self.take(4)
        if index == 15:
            return self.take(24)
        return _AAC_RATES[index] if index < len(_AAC_RATES) else 0


def esds(payload: bytes) -> tuple[int, bytes]:
    """Object type and decoder set-up: descriptors 3 > 4 > 5 of ISO/IEC 14496-1, 7.2.6."""
    at, kind = 4, 0
    while at < len(payload):
        tag, at, length = _descriptor(payload, at)
        if tag == 3:
            flags = payload[at + 2] if at + 2 < len(payload) else 0
            at += 3 + 2 * bool(flags & 0x80) + 2 * bool(flags & 0x20)
            if flags & 0x40 and at < len(payload):
                at += 1 + payload[at]
        elif tag == 4:
            kind = payload[at] if at < len(payload) else 0
            at += 13
        elif tag == 5:
            return kind, payload[at : at + length]
        else:
            at += length
    return kind, b""


def _descriptor(payload: bytes, at: int) -> tuple[int, int, int]:
    """(tag, start, length): the length is written in 7-bit groups, four at most."""
    tag, at, length = payload[at], at + 1, 0
    for byte in payload[at : at + 4]:
        at, length = at + 1, length << 7 | byte & 0x7F
        if not byte & 0x80:
            break
    return tag, at, length


# ---------------------------------------------------------------- the others


def _ac3(entry: _Entry) -> Format:
    """`dac3` (ETSI TS 102 366, F.4): fscod 2 bits, bsid 5, bsmod 3, acmod 3, lfeon 1."""
    bits = _Bits(entry.boxes.get("dac3", b""))
    try:
        rate = (48_000, 44_100, 32_000, 0)[bits.take(2)]
        bits.take(8)
        channels = (2, 1, 2, 3, 3, 4, 4, 5)[bits.take(3)] + bits.take(1)
    except EOFError:
        rate = 0
    if not rate:
        return Format("ac3", entry.rate, entry.channels, frame=1536, known=False)
    return Format("ac3", rate, channels, frame=1536)


def _alac(entry: _Entry) -> Format:
    """The cookie: frame length at 0, channels at 9, rate at 20; libavcodec wants the whole box."""
    payload = entry.boxes.get("alac", b"")
    if len(payload) < 28:
        raise Damaged("alac without its cookie")
    frame, channels, rate = struct.unpack_from(">4xI5xB10xI", payload)
    return Format("alac", rate, channels, struct.pack(">I4s", 36, b"alac") + payload[:28], frame)


def _opus(entry: _Entry) -> Format:
    """`dOps` (Encapsulation of Opus in ISOBMFF, 4.3.2) as the header of RFC 7845, 5.1; always 48 kHz.

    The pre-skip is no concern of the decoder: the edit list hides it, else `Format.skip`.
    """
    payload = entry.boxes.get("dOps", b"")
    if len(payload) < 11:
        raise Damaged("Opus without dOps")
    channels, skip, rate, gain, family = struct.unpack_from(">xBHIhB", payload)
    head = b"OpusHead\1" + struct.pack("<BHIhB", channels, 0, rate, gain, family) + payload[11:]
    return Format("opus", 48_000, channels, head, skip=skip)


def _flac(entry: _Entry) -> Format:
    """`dfLa`: version and flags, a metadata block header, STREAMINFO (RFC 9639, 8.2)."""
    info = entry.boxes.get("dfLa", b"")[8:42]
    if len(info) < 34:
        raise Damaged("fLaC without dfLa")
    packed = int.from_bytes(info[10:14], "big")
    return Format("flac", packed >> 12, (packed >> 9 & 7) + 1, info)


_READERS: dict[str, Callable[[_Entry], Format]] = {"ac-3": _ac3, "alac": _alac, "Opus": _opus, "fLaC": _flac}
