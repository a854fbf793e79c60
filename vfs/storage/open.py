"""From a URL to a store: memory://, file:// or a plain path, s3://BUCKET/PREFIX, r2://BUCKET/PREFIX."""

from __future__ import annotations

import os
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from vfs.errors import ConfigError
from vfs.storage.base import Store


def open_store(
    url: str,
    *,
    deadline: float = 30.0,
    max_connections: int = 32,
    environ: Mapping[str, str] | None = None,
) -> Store | None:
    """The store for a URL; None for a scheme that is not ours. Raises ConfigError, Denied."""
    if "://" not in url:
        from vfs.storage.local import LocalStore

        return LocalStore(url)
    parts = urlsplit(url)
    if parts.scheme == "file":
        from vfs.storage.local import LocalStore

        return LocalStore(unquote(parts.path))
    if parts.scheme == "memory":
        from vfs.storage.memory import MemoryStore

        return MemoryStore()
    if parts.scheme in ("s3", "r2"):
        if not parts.netloc:
            raise ConfigError(f"source {url!r} names no bucket: {parts.scheme}://BUCKET or /BUCKET/PREFIX")
        from vfs.storage.r2 import open_bucket

        return open_bucket(
            parts.scheme,
            parts.netloc,
            unquote(parts.path).strip("/"),
            deadline=deadline,
            max_connections=max_connections,
            environ=os.environ if environ is None else environ,
        )
    return None
