"""reelfs: a bucket of video as a local tree. The public API; the only module a plugin imports.

(`vfs.testing` beside it: contract suites and fixtures.)
"""

from vfs.errors import (
    BadBody,
    ConfigError,
    Damaged,
    DeadlineExceeded,
    Denied,
    IsADirectory,
    MediaError,
    NameTooLong,
    NoMedia,
    NotADirectory,
    NotFound,
    OutOfRange,
    ReadOnly,
    ReelfsError,
    Stale,
    StoreError,
    TooBig,
    Unavailable,
    Unsupported,
    WorkerFailed,
)
from vfs.nodes import Bytes, Directory, Node, Spliced, Symlink
from vfs.spans import Extent, Inline, Layout, Span, StoredObject
from vfs.views import Place, View

__all__ = [
    "BadBody",
    "Bytes",
    "ConfigError",
    "Damaged",
    "DeadlineExceeded",
    "Denied",
    "Directory",
    "Extent",
    "Inline",
    "IsADirectory",
    "Layout",
    "MediaError",
    "NameTooLong",
    "NoMedia",
    "Node",
    "NotADirectory",
    "NotFound",
    "OutOfRange",
    "Place",
    "ReadOnly",
    "ReelfsError",
    "Span",
    "Spliced",
    "Stale",
    "StoreError",
    "StoredObject",
    "Symlink",
    "TooBig",
    "Unavailable",
    "Unsupported",
    "View",
    "WorkerFailed",
]
