"""`verify.json`: a real check of a container. One pass over the file, in windows.

transport-be: the SHA-256 that VERI stores covers the bytes from 8 to VERI's own header. media-kernel-le has
no such rule: the CRC-32 that ends the file is the check of the whole. Both: the CRC of every chunk.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import Any

from vfs import Damaged, Denied, TooBig, Unsupported, in_thread
from vfs_h4mk.chunks import CORE, HEADER, KERNEL, VERI, Chain, Chunk
from vfs_h4mk.container import Container
from vfs_h4mk.tables import parse_seek

WINDOW = 4 << 20
#: Bytes before the first that VERI covers: the head of the file.
COVERED_FROM = 8
#: Problems listed one by one.
MAX_LISTED = 1000


@dataclass
class _Pass:
    """One pass over the bytes: the digest, the CRC of the file, the chunks whose CRC is wrong."""

    chain: Chain
    digest_stop: int
    digest: Any = field(default_factory=hashlib.sha256)
    crc: int = 0
    bad: list[Chunk] = field(default_factory=list)
    _number: int = 0
    _running: int = 0
    _stored: bytes = b""

    def feed(self, data: memoryview, base: int) -> None:
        """The next bytes of the file."""
        self.digest.update(data[max(COVERED_FROM - base, 0) : max(self.digest_stop - base, 0)])
        self.crc = zlib.crc32(data[: max(self.chain.limit - base, 0)], self.crc)
        stop = base + len(data)
        while self._number < len(self.chain):
            chunk = self.chain[self._number]
            first = chunk.header if self.chain.framing is KERNEL else chunk.payload
            last = chunk.payload + chunk.size
            if first < stop:
                self._running = zlib.crc32(data[max(first - base, 0) : max(last - base, 0)], self._running)
            self._stored += (
                bytes(data[max(last - base, 0) : max(chunk.end - base, 0)]) if last < stop else b""
            )
            if chunk.end > stop:
                return
            expected = int.from_bytes(self._stored, "little") if self._stored else chunk.word
            if self._running != expected:
                self.bad.append(chunk)
            self._number, self._running, self._stored = self._number + 1, 0, b""


async def verify(container: Container) -> dict[str, Any]:
    """The verdict: `valid` (true, false, null where nothing can be said), `status`, and what was found."""
    chain = await container.walked()
    veri = chain.first(VERI) if not container.is_kernel else None
    done = _Pass(chain, veri.header if veri else COVERED_FROM)
    for base in range(0, container.place.size, WINDOW):
        data = await container.place.read(base, min(WINDOW, container.place.size - base))
        await in_thread(done.feed, memoryview(data), base)
    bad = await _bad_chunks(container, done)
    whole, algorithm, info = await _whole(container, chain, veri, done)
    broken = bool(bad or chain.broken or chain.gaps)
    valid = False if broken or whole is False else whole
    blocks = await _undecodable(container, {row["block"] for row in bad if row["block"] is not None})
    return {
        "valid": valid,
        "status": {True: "verified", False: "invalid", None: "unverified"}[valid],
        "hash_algorithm": algorithm,
        "info": info if not broken else "damaged: see bad_chunks and problems",
        "variant": chain.framing.variant,
        "chunks": len(chain),
        "blocks": len(chain.cores),
        "bad_chunks": bad,
        "undecodable_blocks": blocks,
        "chunks_after_veri": [] if veri is None else _after(chain, veri),
        "trailing_bytes": chain.trailing,
        "resynced": [list(gap) for gap in chain.gaps],
        "problems": await _problems(container),
    }


async def _whole(
    container: Container, chain: Chain, veri: Chunk | None, done: _Pass
) -> tuple[bool | None, str | None, str]:
    """What the check of the whole file says; None where there is none to make."""
    if container.is_kernel:
        footer = await container.place.read(chain.limit, 4)
        fits = int.from_bytes(footer, "little") == done.crc
        return fits, "crc32", "the CRC-32 of the file " + ("fits" if fits else "does not fit")
    if veri is None:
        return None, None, "no VERI: nothing says what the whole should be"
    if veri.size != 32:
        return False, None, f"VERI of {veri.size} bytes is no SHA-256"
    if veri in done.bad:
        return False, "sha256", "VERI itself is damaged"
    fits = await container.read_chunk(veri, check=False) == done.digest.digest()
    return fits, "sha256", "the SHA-256 of VERI " + ("fits" if fits else "does not fit: bytes were changed")


async def _bad_chunks(container: Container, done: _Pass) -> list[dict[str, Any]]:
    index = {number: n for n, number in enumerate(container.chain.cores)}
    rows = []
    for chunk in done.bad[:MAX_LISTED]:
        block = index.get(chunk.number)
        cut = block in container.chain.broken
        rows.append(
            {
                "tag": chunk.tag.decode("ascii", "backslashreplace"),
                "offset": chunk.header,
                "block": block,
                "reason": "its size lies or it is cut" if cut else "its CRC does not fit",
            }
        )
    return rows


async def _undecodable(container: Container, bad: set[int]) -> list[dict[str, Any]]:
    """Blocks whose CRC fits and that cannot be decoded all the same."""
    texts = await container.texts()
    found: list[dict[str, Any]] = []
    async for index, framed in container.blocks_in_windows():
        if index in bad or len(found) >= MAX_LISTED:
            continue
        payload = framed[HEADER : len(framed) - container.framing.after]
        try:
            await in_thread(container.size_of, payload, index, texts)
        except (Damaged, Unsupported, TooBig) as error:
            found.append({"block": index, "reason": str(error)})
        except Denied as error:
            found.append({"block": None, "reason": f"no block can be decoded: {error}"})
            break
    return found


def _after(chain: Chain, veri: Chunk) -> list[dict[str, Any]]:
    return [
        {"tag": chunk.tag.decode("ascii", "backslashreplace"), "offset": chunk.header}
        for chunk in (chain[n] for n in range(veri.number + 1, min(len(chain), veri.number + 1 + MAX_LISTED)))
    ]


async def _problems(container: Container) -> list[str]:
    """Everything else that is not as it should be."""
    texts = await container.texts()
    found = [*container.chain.problems, *texts.problems]
    chunk = container.chain.first(b"SEEK")
    if chunk is not None and not container.is_kernel:
        try:
            seeks = parse_seek(await container.read_chunk(chunk))
            if seeks is None:
                found.append("SEEK says more entries than it holds")
            elif any(b.pts_us < a.pts_us for a, b in zip(seeks.entries, seeks.entries[1:], strict=False)):
                found.append("SEEK is not sorted by time")
        except (Damaged, TooBig) as error:
            found.append(str(error))
    blocks = [n for n in range(len(container.chain)) if container.chain[n].tag == CORE][-1:]
    if container.is_kernel and blocks and container.chain.first(b"TSEK") is None:
        found.append("no TSEK: blocks are found by walking")
    return found
