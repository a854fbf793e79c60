"""Walking the chunk chain of a stored container: in windows, resumable, around damage; and its tail alone.

The layout has no index of chunks: only the header of one tells where the next stands. Small chunks are read
many to a window, of large ones the headers alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from vfs import Place, in_thread
from vfs_h4mk.chunks import CORE, HEADER, Chain, Framing

KIB, MIB = 1024, 1024 * 1024
#: Bytes of one read of a walk over small chunks.
WINDOW = 1 * MIB
#: The first read: the head, and of most containers the first chunks.
FIRST_WINDOW = 64 * KIB
#: Chunks larger than this on average are not read for the sake of the headers behind them: 16 to a window.
LARGE = WINDOW // 16
#: The last chunks (SEEK, META, SAFE, VERI) are looked for in the last bytes, then in more of them.
TAILS = (64 * KIB, 1 * MIB)
#: Bytes searched for the next chunk after a damaged one, and bytes whose CRC is tried meanwhile.
MAX_SEARCH = 8 * MIB
MAX_TRIED = 16 * MIB
#: Chunks before a broken one that are taken back when their CRC is wrong: the size of one of them lied.
MAX_BACK = 4
#: Damaged places that are worked around; of a file with more of them the rest is given up.
MAX_GAPS = 200

_DAMAGED = "a damaged chunk"
_TABLES = re.compile(b"SEEK|META|SAFE|VERI|TRAK|TSEK|NOTE")


async def walk(place: Place, chain: Chain, enough: Callable[[Chain], bool]) -> None:
    """Walk on until `enough` is known or the file ends. Raises StoreError, Stale."""
    window = FIRST_WINDOW
    while not chain.ended and not enough(chain):
        if chain.stuck is not None:
            await _around(place, chain)
            continue
        length = chain.step if _is_large(chain) else window
        data = await place.read(chain.next, min(length, place.size - chain.next))
        if len(data) > FIRST_WINDOW:
            await in_thread(chain.feed, data, chain.next)
        else:
            chain.feed(data, chain.next)
        window = WINDOW


def _is_large(chain: Chain) -> bool:
    """Whether the headers are so far apart that they are read one by one."""
    known = len(chain)
    return known > 0 and (chain.next - chain.framing.start) // known > LARGE


async def _around(place: Place, chain: Chain) -> None:
    """A header that cannot be one: find the next chunk beyond it, or give up."""
    for _ in range(MAX_BACK):
        if not len(chain) or await _fits(place, chain, chain[len(chain) - 1].header, MAX_TRIED):
            break
        chain.drop_from(len(chain) - 1)
    assert chain.stuck is not None
    tag = (await place.read(chain.stuck, 4)).ljust(4, b"\0")
    found = await _next_chunk(place, chain, chain.stuck + 1) if len(chain.gaps) < MAX_GAPS else None
    if found is None:
        chain.give_up(tag, _DAMAGED + ", and none found behind it")
    else:
        chain.resume(tag, found, _DAMAGED)


async def _next_chunk(place: Place, chain: Chain, start: int) -> int | None:
    """Where the next chunk begins: a known tag whose CRC fits, with another such behind it or the end."""
    tags = re.compile(b"|".join(map(re.escape, sorted(chain.framing.known))))
    tried, stop = 0, min(start + MAX_SEARCH, chain.limit)
    for base in range(start, stop, WINDOW):
        data = await place.read(base, min(WINDOW + HEADER, chain.limit - base))
        for match in tags.finditer(data, 0, WINDOW + 3):
            at = base + match.start()
            room = MAX_TRIED - tried
            if (end := await _end_of(place, chain, at)) is None or end - at > room:
                continue
            tried += end - at
            if not await _fits(place, chain, at, room):
                continue
            if chain.limit - end < HEADER or await _fits(place, chain, end, room):
                return at
    return None


async def _end_of(place: Place, chain: Chain, header: int) -> int | None:
    """Where a chunk whose header stands there would end; None when it would not end in the file."""
    if chain.limit - header < HEADER:
        return None
    _, size, _ = chain.framing.header(await place.read(header, HEADER))
    end = header + HEADER + size + chain.framing.after
    return end if end <= chain.limit else None


async def _fits(place: Place, chain: Chain, header: int, most: int) -> bool:
    """Is there a chunk of at most so many bytes with the right CRC?"""
    end = await _end_of(place, chain, header)
    if end is None or end - header > most:
        return False
    return chain.framing.crc_fits(await place.read(header, end - header))


async def tail(place: Place, framing: Framing) -> Chain | None:
    """The last chunks, when they can be told without a walk: a chain of right CRCs that ends with the file.

    A provisional answer: the payload of a last block could imitate it, and an earlier chunk would win.
    """
    for length in TAILS:
        base = max(place.size - length, framing.start)
        data = await place.read(base, place.size - base)
        found = await in_thread(_chain_at_end, framing, data, base, place.size)
        if found is not None or base == framing.start:
            return found
    return None


def _chain_at_end(framing: Framing, data: bytes, base: int, size: int) -> Chain | None:
    for match in _TABLES.finditer(data):
        chain = Chain(framing, size, next=base + match.start())
        chain.feed(data, base)
        if chain.ended and all(
            chunk.tag != CORE and framing.crc_fits(data[chunk.header - base : chunk.end - base])
            for chunk in chain
        ):
            return chain
    return None
