"""What plugins may bring to searching: descriptors of pictures, and indexes of vectors. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A further descriptor of pictures, made in worker processes.

    name: what settings and `descriptor:NAME/` call it; another version has another name. module, function:
    where a worker finds it: `describe(pictures)` takes (N, height, width, 3) RGB, uint8, small pictures of
    one size, and gives (N, dimensions) float32, to be compared by their cosines.
    """

    name: str
    module: str
    function: str


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """What is searched in.

    rows: (N, D), uint8, mapped from disk, not of length 1. alive: (N,), False for rows that are not to be
    found. generation: changes whenever `rows` do, so that what was built of them can be kept.
    """

    generation: str
    rows: NDArray[Any]
    alive: NDArray[Any]


class VectorIndex(Protocol):
    """Finds the nearest vectors in place of a scan: an approximate index, a server."""

    name: str

    def nearest(
        self, vectors: Vectors, queries: NDArray[Any], k: int, least: float
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """(queries, k) row numbers (-1 = none) and cosines, best first, of rows that are alive.

        queries: (Q, D), float32, of length 1. least: cosines below do not count. Called in a thread.
        """
