"""Sending bodies: how large parts are, and how much of them is in memory."""

from __future__ import annotations

import random
from collections.abc import Mapping

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from vfs.errors import Unavailable
from vfs.spans import StoredObject
from vfs.storage import upload
from vfs.storage.base import Body, Part
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


def test_a_refused_part_ends_no_other() -> None:
    """What is under way beside it arrives, and is not sent again; nothing more is begun."""
    size = (upload.AT_ONCE + 2) * 8 * MIB
    body = bytes(8 * MIB)

    class Refusing(MemoryStore):
        def __init__(self) -> None:
            super().__init__()
            self.begun: list[int] = []
            self.refused = trio.Event()

        async def put_part(self, key: str, name: str, number: int, body: Body) -> Part:
            self.begun.append(number)
            if len(self.begun) == upload.AT_ONCE:
                self.refused.set()
                raise Unavailable("not now")
            await self.refused.wait()
            return await super().put_part(key, name, number, body)

    async def main() -> None:
        store, done, names = Refusing(), dict[int, Part](), list[str]()

        async def read(offset: int, length: int) -> bytes:
            return body

        async def began(name: str) -> None:
            names.append(name)

        async def sent(part: Part, length: int) -> None:
            done[part.number] = part

        with pytest.raises(Unavailable, match="not now"):
            await upload.send(store, "a", size, read, replaces=None, began=began, sent=sent, single=MIB)
        *others, refused = store.begun
        assert sorted(done) == sorted(others)
        assert len(others) == upload.AT_ONCE - 1
        stored = await upload.send(store, "a", size, read, replaces=None, upload=names[0], done=done)
        assert stored.size == size
        assert sorted(store.begun) == sorted([*range(1, upload.AT_ONCE + 3), refused])

    trio.run(main)
