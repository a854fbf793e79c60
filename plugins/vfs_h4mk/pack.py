"""Writing transport-be containers as the original's builder does: blocks, SEEK, META, SAFE, VERI."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, BinaryIO, Protocol

from vfs import ReelfsError
from vfs_h4mk.chunks import CORE, MAGIC, META, SAFE, SEEK, VERI
from vfs_h4mk.codecs import REFERENCE

KIB, MIB = 1024, 1024 * 1024
#: What an export allows: bytes of a block.
LEAST_BLOCK, MOST_BLOCK, USUAL_BLOCK = 64 * KIB, 8 * MIB, 512 * KIB
#: The original's encoder takes blocks of a multiple of this alone; its decoder any.
UNIT = 256
#: What the reference engine says of itself in META.
COMPRESSION: Mapping[str, Any] = {
    "engine": REFERENCE.engine,
    "engine_id": "unknown",
    "fingerprint": "unknown",
    "deterministic": True,
    "identity_safe": True,
    "opaque": False,
    "sealed": False,
}
#: SAFE of an export.
EXPORT_SAFE: Mapping[str, Any] = {
    "scope": "container+transport-only",
    "no_video_synthesis": True,
    "no_pixel_semantics": True,
    "no_visual_ml": True,
}
_MAX_PAYLOAD = (1 << 32) - 1


class Source(Protocol):
    """What is packed: read from front to back."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, fewer only at the end."""


def export_meta(block_size: int, fps: float, gop: int) -> dict[str, Any]:
    """META as an export writes it, but for the compression that is always added."""
    return {
        "project": "HarmonyØ4",
        "domain": "video-transport",
        "block_size": block_size,
        "fps_hint": fps,
        "gop": gop,
        "masked": False,
    }


def export_seeks(sizes: Sequence[int], fps: float, gop: int) -> list[tuple[int, int]]:
    """SEEK rows (pts_us, offset) of an export: one each `gop` blocks; a block counts as a frame."""
    step = int(1_000_000 / fps)
    starts = [0]
    for size in sizes:
        starts.append(starts[-1] + size)
    return [(index * step, starts[index]) for index in range(0, len(sizes), gop)]


class Writer:
    """Writes one container into a binary file, chunk after chunk. Finish it with `finish`."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._digest = hashlib.sha256()
        self.sizes: list[int] = []
        out.write(MAGIC + struct.pack(">HH", 1, 0))

    def block(self, data: bytes) -> None:
        """A decoded block. Raises ReelfsError when its code is larger than a chunk may be."""
        payload = REFERENCE.encode(data)
        if len(payload) > _MAX_PAYLOAD:
            raise ReelfsError(f"a block of {len(data)} bytes is too large for a chunk")
        self.sizes.append(len(data))
        self._chunk(CORE, payload)

    def finish(
        self, seeks: Iterable[tuple[int, int]], meta: Mapping[str, Any], safe: Mapping[str, Any]
    ) -> None:
        """SEEK rows (pts_us, offset in the decoded bytes), META (the compression is added), SAFE, VERI."""
        rows = list(seeks)
        self._chunk(SEEK, struct.pack(">I", len(rows)) + b"".join(struct.pack(">QQ", *row) for row in rows))
        self._chunk(META, _compact({**meta, "compression": dict(COMPRESSION)}))
        self._chunk(SAFE, _compact(safe))
        self._chunk(VERI, self._digest.digest())

    def _chunk(self, tag: bytes, payload: bytes) -> None:
        for part in (tag + struct.pack(">II", len(payload), zlib.crc32(payload)), payload):
            self._out.write(part)
            self._digest.update(part)


def _compact(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def blocks_of(source: Source, size: int) -> Iterable[bytes]:
    """The bytes of a file cut into blocks; only the last may be shorter."""
    while block := source.read(size):
        yield block
