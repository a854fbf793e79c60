"""reelfs: a bucket of video as a local tree. The public API; the only module a plugin imports.

(`vfs.testing` beside it: contract suites and fixtures.)
"""

import importlib
from typing import TYPE_CHECKING

from vfs.errors import (
    BadBody,
    ConfigError,
    Damaged,
    DeadlineExceeded,
    Denied,
    IsADirectory,
    Malformed,
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
from vfs.hookspecs import Asked, Command, Indexer, MountCommand, hookimpl
from vfs.names import Derived, Moment, Selection, escape, parse_derived, unescape
from vfs.nodes import Bytes, Directory, Inbox, Node, Pool, Spliced, Symlink
from vfs.spans import DerivedObject, Extent, Inline, Layout, Span, SpanTable, StoredObject
from vfs.vectors import Descriptor, VectorIndex, Vectors
from vfs.views import Place, Sidecars, SmallFiles, View

if TYPE_CHECKING:
    from vfs.arguments import ConfigOption, JsonOption, SettingOptions
    from vfs.config import Settings
    from vfs.controlclient import ask_mount
    from vfs.plugins import Plugins
    from vfs.rows import MAX_DATABASE, harden, read_rows, words_of
    from vfs.runtime import Runtime, open_runtime
    from vfs.tasks import gather
    from vfs.telemetry import Status
    from vfs.terminal import in_trio
    from vfs.units import parse_size
    from vfs.workerfeed import Source
    from vfs.workerfile import WorkerFile
    from vfs.workerproc import worker_keeps
    from vfs.workers import in_thread, in_worker

#: Names whose modules cost an import (trio, pydantic) that a worker process or a plugin may never need.
_LATE = {
    "MAX_DATABASE": "vfs.rows",
    "ConfigOption": "vfs.arguments",
    "JsonOption": "vfs.arguments",
    "SettingOptions": "vfs.arguments",
    "Settings": "vfs.config",
    "Plugins": "vfs.plugins",
    "Runtime": "vfs.runtime",
    "Source": "vfs.workerfeed",
    "Status": "vfs.telemetry",
    "WorkerFile": "vfs.workerfile",
    "gather": "vfs.tasks",
    "harden": "vfs.rows",
    "ask_mount": "vfs.controlclient",
    "in_thread": "vfs.workers",
    "in_trio": "vfs.terminal",
    "in_worker": "vfs.workers",
    "open_runtime": "vfs.runtime",
    "parse_size": "vfs.units",
    "read_rows": "vfs.rows",
    "words_of": "vfs.rows",
    "worker_keeps": "vfs.workerproc",
}


def __getattr__(name: str) -> object:
    """Import what is listed in `_LATE` when it is first used."""
    if name in _LATE:
        return getattr(importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module 'vfs' has no attribute {name!r}")


__all__ = [
    "MAX_DATABASE",
    "Asked",
    "BadBody",
    "Bytes",
    "Command",
    "ConfigError",
    "ConfigOption",
    "Damaged",
    "DeadlineExceeded",
    "Denied",
    "Derived",
    "DerivedObject",
    "Descriptor",
    "Directory",
    "Extent",
    "Inbox",
    "Indexer",
    "Inline",
    "IsADirectory",
    "JsonOption",
    "Layout",
    "Malformed",
    "MediaError",
    "Moment",
    "MountCommand",
    "NameTooLong",
    "NoMedia",
    "Node",
    "NotADirectory",
    "NotFound",
    "OutOfRange",
    "Place",
    "Plugins",
    "Pool",
    "ReadOnly",
    "ReelfsError",
    "Runtime",
    "Selection",
    "SettingOptions",
    "Settings",
    "Sidecars",
    "SmallFiles",
    "Source",
    "Span",
    "SpanTable",
    "Spliced",
    "Stale",
    "Status",
    "StoreError",
    "StoredObject",
    "Symlink",
    "TooBig",
    "Unavailable",
    "Unsupported",
    "VectorIndex",
    "Vectors",
    "View",
    "WorkerFailed",
    "WorkerFile",
    "ask_mount",
    "escape",
    "gather",
    "harden",
    "hookimpl",
    "in_thread",
    "in_trio",
    "in_worker",
    "open_runtime",
    "parse_derived",
    "parse_size",
    "read_rows",
    "unescape",
    "words_of",
    "worker_keeps",
]
