"""One process of `reelfs index`: keys come in as lines of JSON, outcomes go out the same way.

`python -m vfs.indexwork`: the first line is the settings, the indexers and how to go about it, each further
one a key. It ends when its input does, so it never outlives the command.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import trio

from vfs.config import Settings
from vfs.errors import NotFound, ReelfsError
from vfs.hookspecs import Indexer
from vfs.runtime import open_runtime, rules_of
from vfs.views import Place, Sidecars
from vfs.write.sidecars import StoredSidecars

#: Files that one process works on at a time: a walk waits for one small request after another.
AT_ONCE = 4
#: Outcomes by their weight: what one of several indexers met is what is told of the file.
_WEIGHT = ("failed", "unplayable", "made", "none fits", "there", "none needed")


async def _index(place: Place, indexers: Sequence[Indexer], sidecars: Sidecars | None) -> tuple[str, str]:
    """All indexers that want a file, one after the other: the weightiest outcome, and all reasons."""
    found = [(i.name, *await i.index(place, sidecars)) for i in indexers if i.wants(place.path)]
    state = min((state for _, state, _ in found), key=_WEIGHT.index, default="none needed")
    if len(found) == 1:
        return state, found[0][2]
    return state, "; ".join(f"{name}: {reason}" for name, _, reason in found if reason)


async def _outcome(
    root: Place, key: str, indexers: Sequence[Indexer], sidecars: Sidecars | None
) -> dict[str, str]:
    try:
        place = await root.find(key)
        if place is None or place.is_folder:
            raise NotFound("it is not there any more")
        state, reason = await _index(place, indexers, sidecars)
    except (ReelfsError, OSError) as error:
        state, reason = "failed", str(error) or type(error).__name__
    return {"key": key, "state": state, "reason": reason}


async def _lines() -> AsyncIterator[Any]:
    """What comes in, as values."""
    rest = b""
    async with trio.lowlevel.FdStream(os.dup(0)) as stream:
        async for piece in stream:
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                yield json.loads(line)


async def _serve() -> None:
    lines = _lines()
    first = await anext(lines)
    slots = trio.CapacityLimiter(AT_ONCE)
    # Before any thread or worker is started: they take after this one.
    os.nice(first["nice"])
    settings, beside = Settings.from_dict(first["settings"]), bool(first["beside"])

    async def one(root: Place, indexers: Sequence[Indexer], sidecars: Sidecars | None, key: str) -> None:
        async with slots:
            found = await _outcome(root, key, indexers, sidecars)
        with suppress(BrokenPipeError):  # told by the end of the input, too
            os.write(1, json.dumps(found).encode() + b"\n")

    async with open_runtime(settings, writes=beside) as runtime, trio.open_nursery() as nursery:
        root = (await runtime.tree.root()).place
        assert root is not None
        indexers = [i for i in runtime.plugins.indexers(runtime.settings) if i.name in first["indexers"]]
        sidecars = StoredSidecars(runtime.store, rules_of(settings, runtime.store)) if beside else None
        async for key in lines:
            nursery.start_soon(one, root, indexers, sidecars, key)
        # Nobody waits for what is still being done.
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    # What it reports about single files comes out as their outcomes.
    logging.basicConfig(level=logging.ERROR)
    trio.run(_serve)
