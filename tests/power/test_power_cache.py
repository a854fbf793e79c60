"""What a power cut leaves of the caches is right or not there: nothing is synced, all is checksummed."""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Iterator

import pytest
import trio

from tests.power.disk import PAGE, Left
from tests.power.lossy import LossyDisks, lossy_disks
from vfs.cache import diskfile
from vfs.cache.diskfile import Found
from vfs.cache.kept import Kept
from vfs.spans import StoredObject

pytestmark = pytest.mark.fuse

IDENTITY = "0123456789abcdef" * 2
SIZES = (1, PAGE, 5 * PAGE + 7, diskfile.CHUNK + 1, 600_000)
CUTS = [(left, seed) for left, seed in itertools.product(Left, range(8)) if seed == 0 or left is Left.SOME]


@pytest.fixture(scope="module")
def disks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LossyDisks]:
    with lossy_disks(tmp_path_factory.mktemp("lossy") / "disks") as disks:
        yield disks


@pytest.mark.parametrize("ordered", [False, True], ids=["strict", "ordered"])
def test_blocks_are_right_or_not_there(ordered: bool, disks: LossyDisks) -> None:
    disk = disks.make(ordered=ordered)
    root, lock = diskfile.lock(disk.path)
    bodies = {}
    for at, size in enumerate(SIZES):
        bodies[at << 20] = random.Random(size).randbytes(size)
        diskfile.write(root, IDENTITY, at << 20, memoryview(bodies[at << 20]))
    diskfile.remove(root, Found(IDENTITY, 0, SIZES[0], 0.0))
    diskfile.write(root, IDENTITY, 0, memoryview(bodies[0]))  # a name that was another file's
    seen = []
    for left, seed in CUTS:
        cut = disk.cut(left, seed)
        below = cut.path / root.name
        for found in diskfile.scan(below) if below.exists() else ():
            data = diskfile.read(below, found, found.start, found.end, touch=False)
            assert data is None or data == bodies[found.start]
            seen.append(data is not None)
        cut.drop()
    assert {*seen} == {True, False}, "some were damaged, some not"
    os.close(lock)


def test_indexes_are_right_or_not_there(disks: LossyDisks) -> None:
    disk = disks.make()
    data = random.Random(1).randbytes(9 * PAGE)
    stored = StoredObject("a.mp4", 1, "v1")

    async def put() -> None:
        assert await Kept(disk.path / "kept", "s3://bucket").put(stored, "index", data)

    trio.run(put)
    seen = {trio.run(Kept(disk.cut(*cut).path / "kept", "s3://bucket").get, stored, "index") for cut in CUTS}
    assert seen == {None, data}
