"""Cyclic checksums that stores keep of whole objects, over bytes that come in any order.

CRC-64/NVME is what S3 keeps of every object since 2024 that is uploaded without another, and the one of R2
that covers a whole object. Its parameters stand in the NVM Express command set specification.
"""

from __future__ import annotations

from functools import cache
from typing import Any

Body = bytes | bytearray | memoryview

#: Pieces that may lie beyond what is known from the start on: more is no reading in order.
MOST_AHEAD = 256


@cache
def model(name: str) -> Any:
    """A CRC by the name `anycrc` has for it: `calc(data, before)`, `combine(first, second, its length)`."""
    import anycrc  # some 3 MB, for stores that have such checksums

    return anycrc.Model(name)


def crc64nvme(body: Body) -> int:
    """Of all bytes."""
    value: int = model("CRC64-NVME").calc(body)
    return value


class Running:
    """The CRC-64/NVME of a file that is read from its start to its end, more or less in order.

    at: so many bytes from the start on are in `value`. lost: too much is missing in between.
    """

    def __init__(self) -> None:
        self.at = self.value = 0
        self.lost = False
        self._ahead: dict[int, tuple[int, int]] = {}

    def add(self, offset: int, body: Body) -> None:
        """Bytes at an offset; what is known already is left out."""
        if self.lost or offset < self.at or not len(body):
            return
        crc = model("CRC64-NVME")
        if offset > self.at:
            self._ahead[offset] = (crc.calc(body), len(body))
            self.lost = len(self._ahead) > MOST_AHEAD
            return
        self.value, self.at = crc.calc(body, self.value if self.at else None), offset + len(body)
        while (found := self._ahead.pop(self.at, None)) is not None:
            self.value, self.at = crc.combine(self.value, *found), self.at + found[1]
