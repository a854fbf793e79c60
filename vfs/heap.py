"""The C library's heap: large blocks that were freed are kept for the next ones.

Left alone it gives them back to the kernel, and clearing the pages of new ones takes as long as the work that
is done in them: a third of the time of a picture, a quarter of that of a sequential read. Imported in worker
processes, so it imports next to nothing.
"""

from __future__ import annotations

import ctypes

#: mallopt(3). Blocks of up to 32 MiB (the most that glibc takes) come from the heap.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_BLOCK = 32 << 20


def keep_freed(most: int) -> None:
    """Keep `most` bytes that are free at the end of the heap, which all threads share from here on.

    Other C libraries have no such call, or ignore it.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(_M_MMAP_THRESHOLD, _BLOCK)
        library.mallopt(_M_TRIM_THRESHOLD, most)
        library.mallopt(_M_ARENA_MAX, 1)
