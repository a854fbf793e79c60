"""Decoding blocks: the run-length code of the reference engine, and the hook for other engines.

The reference engine's payload is pairs (value, run), run 0 to 255; nothing else is known of public files.
Sealed engines are decoded by plugins: a package with an entry point in the group `vfs_h4mk` implements

    from vfs_h4mk.codecs import hookimpl

    @hookimpl
    def h4mk_codecs():
        return [MyEngine()]
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Protocol

import numpy as np
import pluggy

from vfs import Damaged, TooBig

GROUP = "vfs_h4mk"
hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Codec(Protocol):
    """Decodes the blocks of one engine. engine: what `META.compression.engine` calls it."""

    @property
    def engine(self) -> str:
        """The name of the engine."""

    def decoded_size(self, payload: bytes) -> int:
        """Bytes that a payload decodes to. Raises Damaged."""

    def decode(self, payload: bytes, limit: int) -> bytes:
        """The block. Raises Damaged, TooBig for more than `limit` bytes (before it is made)."""


class _Hooks:
    @hookspec
    def h4mk_codecs(self) -> Iterable[Codec]:  # type: ignore[empty-body]
        """The codecs of this plugin; called once."""


class Reference:
    """The reference engine's run-length code, with numpy."""

    engine = "geometric-reference"

    def decoded_size(self, payload: bytes) -> int:
        """The sum of the runs."""
        if len(payload) % 2:
            raise Damaged(f"{len(payload)} bytes are no pairs of value and run")
        return int(np.frombuffer(payload, np.uint8)[1::2].sum(dtype=np.int64))

    def decode(self, payload: bytes, limit: int) -> bytes:
        """Each value as often as its run says."""
        size = self.decoded_size(payload)
        if size > limit:
            raise TooBig(f"a block of {size} bytes, max_block_size is {limit}")
        pairs = np.frombuffer(payload, np.uint8)
        return np.repeat(pairs[0::2], pairs[1::2]).tobytes()

    def encode(self, data: bytes) -> bytes:
        """The greedy encoding: runs as long as they go, 255 at most."""
        values = np.frombuffer(data, np.uint8)
        if not len(values):
            return b""
        starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
        lengths = np.diff(np.append(starts, len(values)))
        full, rest = lengths // 255, lengths % 255
        counts = full + (rest > 0)
        runs = np.full(int(counts.sum()), 255, np.uint8)
        last = np.cumsum(counts) - 1
        runs[last[rest > 0]] = rest[rest > 0]
        pairs = np.empty((len(runs), 2), np.uint8)
        pairs[:, 0], pairs[:, 1] = np.repeat(values[starts], counts), runs
        return pairs.tobytes()


class Stored:
    """Blocks that are stored as they are."""

    engine = "stored"

    def decoded_size(self, payload: bytes) -> int:
        """That of the payload."""
        return len(payload)

    def decode(self, payload: bytes, limit: int) -> bytes:
        """The payload."""
        if len(payload) > limit:
            raise TooBig(f"a block of {len(payload)} bytes, max_block_size is {limit}")
        return payload


REFERENCE, STORED = Reference(), Stored()


@cache
def known() -> Mapping[str, Codec]:
    """Codecs by engine: ours, and those of installed plugins."""
    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(_Hooks)
    manager.load_setuptools_entrypoints(GROUP)
    manager.check_pending()
    found: dict[str, Codec] = {REFERENCE.engine: REFERENCE}
    for codecs in manager.hook.h4mk_codecs():
        found |= {codec.engine: codec for codec in codecs}
    return found
