"""reelfs: a bucket of video as a local tree. The public API; the only module a plugin imports.

(`vfs.testing` beside it: contract suites and fixtures.)
"""

from typing import TYPE_CHECKING

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
from vfs.hookspecs import Command, hookimpl
from vfs.names import Derived, Moment, Selection, escape, parse_derived, unescape
from vfs.nodes import Bytes, Directory, Node, Spliced, Symlink
from vfs.spans import Extent, Inline, Layout, Span, StoredObject
from vfs.views import Place, View
from vfs.workers import in_thread, in_worker, warm

if TYPE_CHECKING:  # what hooks are given; importing them costs a plugin nothing
    from vfs.config import Settings
    from vfs.telemetry import Status

__all__ = [
    "BadBody",
    "Bytes",
    "Command",
    "ConfigError",
    "Damaged",
    "DeadlineExceeded",
    "Denied",
    "Derived",
    "Directory",
    "Extent",
    "Inline",
    "IsADirectory",
    "Layout",
    "MediaError",
    "Moment",
    "NameTooLong",
    "NoMedia",
    "Node",
    "NotADirectory",
    "NotFound",
    "OutOfRange",
    "Place",
    "ReadOnly",
    "ReelfsError",
    "Selection",
    "Settings",
    "Span",
    "Spliced",
    "Stale",
    "Status",
    "StoreError",
    "StoredObject",
    "Symlink",
    "TooBig",
    "Unavailable",
    "Unsupported",
    "View",
    "WorkerFailed",
    "escape",
    "hookimpl",
    "in_thread",
    "in_worker",
    "parse_derived",
    "unescape",
    "warm",
]
