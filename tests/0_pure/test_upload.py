"""Sending bodies: how large parts are, and how much of them is in memory."""

from __future__ import annotations

import random
from collections.abc import Mapping

import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body
from vfs.storage.memory import MemoryStore

MIB = upload.MIB


@given(st.integers(0, 5 * 10**12))
def test_parts_are_equal_and_never_too_many(size: int) -> None:
    """At least 8 MiB, whole MiB, at most 10,000, the last no larger than the others (R2: 10048)."""
    step, count = upload.part_size(size), upload.part_count(size)
    assert step >= 8 * MIB
    assert step % MIB == 0
    assert 1 <= count <= 10_000
    assert (count - 1) * step < max(size, 1) <= count * step


def test_many_uploads_share_their_room() -> None:
    """However many files wait, no more bytes are in memory than there is room for; each arrives whole."""
    most, now, peak = 6 * MIB, 0, 0
    bodies = {f"{n}": random.Random(n).randbytes(random.Random(n).randrange(1, 4 * MIB)) for n in range(20)}
    bodies["larger than the room"] = bytes(8 * MIB)

    class Counting(MemoryStore):
        async def put(
            self,
            key: str,
            body: Body,
            *,
            replaces: StoredObject | None,
            metadata: Mapping[str, str] | None = None,
        ) -> StoredObject:
            nonlocal now
            await trio.sleep(0.001)
            now -= len(body)
            return await super().put(key, body, replaces=replaces, metadata=metadata)

    async def main() -> None:
        store, room = Counting(), upload.Room(most)

        async def one(key: str) -> None:
            async def read(offset: int, length: int) -> bytes:
                nonlocal now, peak
                now += length
                peak = max(peak, now)
                await trio.sleep(0.001)
                return bodies[key][offset : offset + length]

            stored = await upload.send(store, key, len(bodies[key]), read, replaces=None, room=room)
            assert bytes(await store.read(stored, 0, stored.size)) == bodies[key]

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for key in bodies:
                    nursery.start_soon(one, key)

    trio.run(main)
    assert most // 2 < peak <= 8 * MIB  # the one that is larger goes alone
    assert now == 0


def test_a_cancelled_upload_gives_its_room_back() -> None:
    async def main() -> None:
        room = upload.Room(10)
        async with trio.open_nursery() as nursery:

            async def hold() -> None:
                async with room.take(10):
                    await trio.sleep_forever()

            nursery.start_soon(hold)
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0) as waiting:
                async with room.take(1):
                    pass
            assert waiting.cancelled_caught
            nursery.cancel_scope.cancel()
        with trio.fail_after(1):
            async with room.take(10):
                pass

    trio.run(main)
