"""Reading an object without any file system: the clients that a mount is compared with.

Each reads the whole game through the same proxy and hands its bytes to nobody. None is timed while it starts:
sessions are open, as a mount is. Ours asks for the object's head first; the others' one request needs none.
(boto3's transfer manager is not among them: with `rclone serve s3`, which answers ranges with status 200, it
waits for ever.)
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping

import trio

from tests.bench.stage import BUCKET, Stage
from tests.servers import ACCESS_KEY, SECRET_KEY, Server
from vfs.storage.base import Store
from vfs.storage.open import open_store

MIB = 1 << 20
KEY = "games/game.mp4"
#: Of our own client: ranges of 8 MiB, so many at once. (16, or ranges of 4 and 16 MiB, were no faster.)
RANGE, AT_ONCE = 8 * MIB, 8

Read = Callable[[], int]


def measured(place: Stage, name: str, size: int) -> tuple[float, float]:
    """MB/s and seconds of CPU of one read by a client of `CLIENTS`."""
    with CLIENTS[name](place) as read:
        began, cpu = time.perf_counter(), _cpu()
        count = read()
        seconds, cpu = time.perf_counter() - began, _cpu() - cpu
    assert count == size
    return size / seconds / 1e6, cpu


def _cpu() -> float:
    """Of this process and the children that ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@contextlib.contextmanager
def _ours(place: Stage) -> Iterator[Read]:
    store = open_store(f"s3://{BUCKET}", environ={**os.environ, **place.environ})
    assert store is not None
    yield lambda: trio.run(_ranges, store)


async def _ranges(store: Store) -> int:
    stored = (await store.head(KEY)).object
    slots = trio.Semaphore(AT_ONCE)
    done = 0

    async def one(offset: int) -> None:
        nonlocal done
        body = await store.read(stored, offset, min(RANGE, stored.size - offset))
        done += len(body)
        slots.release()

    async with trio.open_nursery() as nursery:
        for offset in range(0, stored.size, RANGE):
            await slots.acquire()
            nursery.start_soon(one, offset)
    await store.aclose()
    return done


@contextlib.contextmanager
def _boto3_stream(place: Stage) -> Iterator[Read]:
    with contextlib.closing(Server(place.proxy.url).client()) as client:

        def read() -> int:
            body = client.get_object(Bucket=BUCKET, Key=KEY)["Body"]
            return sum(map(len, body.iter_chunks(MIB)))

        yield read


@contextlib.contextmanager
def _curl(place: Stage) -> Iterator[Read]:
    command = ["curl", "-sf", "-o", os.devnull, "-w", "%{size_download}"]
    command += ["--aws-sigv4", "aws:amz:us-east-1:s3", "--user", f"{ACCESS_KEY}:{SECRET_KEY}"]
    command += [f"{place.proxy.url}/{BUCKET}/{KEY}"]
    yield lambda: int(subprocess.run(command, check=True, capture_output=True).stdout)


Client = Callable[[Stage], contextlib.AbstractContextManager[Read]]
OURS = "our client, 8 ranges at once"
CLIENTS: Mapping[str, Client] = {
    OURS: _ours,
    "boto3 get_object": _boto3_stream,
    **({"curl": _curl} if shutil.which("curl") else {}),
}
