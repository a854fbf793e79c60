"""From a URL to a store: memory://, file:// or a plain path, s3://BUCKET/PREFIX, r2://BUCKET/PREFIX.

A prefix of a bucket is taken as it is written, as other S3 programs do: `s3://b/100%25 a` has a percent sign
and a 25 in it. A `file://` URL is percent-encoded, as such URLs are. boto3 is imported when a bucket is
opened, not before: it takes a good part of the start-up time and of the memory of an idle daemon.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from vfs.errors import ConfigError
from vfs.storage.base import Store

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,254}")


def open_store(
    url: str,
    *,
    deadline: float = 30.0,
    max_connections: int = 32,
    environ: Mapping[str, str] | None = None,
) -> Store | None:
    """The store for a URL; None for a scheme that is not ours. Asks nothing of a bucket yet.

    deadline: seconds an operation may take in all; timeouts of connections are set below it.
    max_connections: reads at once. environ: instead of the process's environment. Raises ConfigError
    (a wrong URL or setting, a folder that is not there) and Denied (no credentials), each with the mend.
    """
    scheme, separator, rest = url.partition("://")
    if not separator:
        return _folder(url)
    if scheme == "file":
        host, slash, path = rest.partition("/")
        if host not in ("", "localhost") or not slash:
            raise ConfigError(f"source {url!r} names another machine: file:///PATH, or just the path")
        return _folder(os.fsdecode(unquote_to_bytes(slash + path)))
    if scheme == "memory":
        from vfs.storage.memory import MemoryStore

        return MemoryStore()
    if scheme not in ("s3", "r2"):
        return None
    bucket, _, prefix = rest.partition("/")
    if not bucket:
        raise ConfigError(f"source {url!r} names no bucket: {scheme}://BUCKET or {scheme}://BUCKET/PREFIX")
    if not _BUCKET.fullmatch(bucket):
        raise ConfigError(f"source {url!r}: {bucket!r} cannot be the name of a bucket")
    from vfs.storage.r2 import open_bucket

    return open_bucket(
        scheme,
        bucket,
        prefix.strip("/"),
        deadline=deadline,
        max_connections=max_connections,
        environ=os.environ if environ is None else environ,
    )


def _folder(path: str) -> Store:
    from vfs.storage.local import LocalStore

    return LocalStore(path)
