"""`payload.EXT`: all decoded blocks joined, by range; its kind told from its first bytes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from vfs import Damaged, OutOfRange, in_thread
from vfs_h4mk import tables
from vfs_h4mk.container import Container

#: Bytes that tell what a payload is.
_SNIFFED = 4096
#: Blocks that are looked at for them: the first may be empty or damaged.
_TRIED = 8


@dataclass(frozen=True, eq=False)
class Payload:
    """The joined blocks. starts: offset of each block, and the size of all as the last. grain: bytes of a
    block where all but the last have the same size, else 0.
    """

    container: Container = field(repr=False)
    starts: NDArray[np.int64]
    extension: str
    grain: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return int(self.starts[-1])

    @property
    def name(self) -> str:
        """`payload.mp4`."""
        return f"payload.{self.extension}"

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.starts.nbytes

    async def read(self, offset: int, length: int) -> bytes:
        """Bytes [offset, offset + length). Raises Damaged where a block in it is damaged."""
        index = int(np.searchsorted(self.starts, offset, "right")) - 1
        last = int(np.searchsorted(self.starts, offset + length, "left")) - 1
        await self.container.ahead(index, last)
        parts: list[bytes] = []
        while length > 0:
            start, stop = int(self.starts[index]), int(self.starts[index + 1])
            if stop > start:
                block = await self.container.decoded(index)
                if len(block) != stop - start:
                    raise Damaged(
                        f"block {index} of {self.container.place.path} has {len(block)} bytes, "
                        f"{stop - start} were expected"
                    )
                parts.append(block[offset - start : offset - start + length])
                offset, length = offset + len(parts[-1]), length - len(parts[-1])
            index += 1
        return parts[0] if len(parts) == 1 else await in_thread(b"".join, parts)


async def open_payload(container: Container) -> Payload:
    """The payload, kept with the container.

    Raises Damaged where a block's size cannot be told, and what decoding the first block raises.
    """
    return await container.place.derive(container.name_of("payload"), partial(_open, container))


async def _open(container: Container) -> Payload:
    sizes = await container.sizes()
    unknown = np.flatnonzero(sizes < 0)
    if len(unknown):
        await container.decoded(int(unknown[0]))
        raise Damaged(
            f"{container.place.path}: block {int(unknown[0])} cannot be decoded, so no size is known"
        )
    starts = np.concatenate(([0], np.cumsum(sizes)))
    step = tables.block_size((await container.texts()).meta)
    even = step is not None and len(sizes) > 1 and bool((sizes[:-1] == step).all())
    return Payload(container, starts, await kind_of(container), step if even and step else 0)


async def kind_of(container: Container) -> str:
    """The extension of the payload, told from the first of its blocks that is not empty; kept.

    Raises what decoding it raises, but for damage: `bin`.
    """
    return await container.place.derive(container.name_of("kind"), partial(_kind, container))


async def _kind(container: Container) -> str:
    for index in range(_TRIED):
        try:
            if head := (await container.decoded(index))[:_SNIFFED]:
                return sniffed(head)
        except OutOfRange:
            break
        except Damaged:
            continue
    return "bin"


def sniffed(head: bytes) -> str:
    """The extension that fits the first bytes of a file; `bin` where none is known."""
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"styp", b"moof"):
        return "mp4"
    if head.startswith(b"\x1a\x45\xdf\xa3"):
        return "webm" if b"webm" in head[:64] else "mkv"
    if head[:1] == b"\x47" and head[188:189] == b"\x47":
        return "ts"
    if head.startswith(b"RIFF"):
        return {b"WAVE": "wav", b"AVI ": "avi", b"WEBP": "webp"}.get(head[8:12], "bin")
    return next((kind for magic, kind in _MAGICS.items() if head.startswith(magic)), "bin")


_MAGICS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpg",
    b"GIF8": "gif",
    b"OggS": "ogg",
    b"fLaC": "flac",
    b"ID3": "mp3",
    b"%PDF": "pdf",
    b"PK\x03\x04": "zip",
    b"\x1f\x8b": "gz",
}
