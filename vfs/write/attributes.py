"""What a stored file is besides its bytes, kept in the metadata of its object. Pure.

An object of a store has a size and a time of its last upload. Mode, owner, the time a program set, extended
attributes and the target of a symbolic link travel in its user metadata (`x-amz-meta-NAME`); the names of the
common ones are those that rclone and s3fs use. A folder's are in the metadata of its marker `folder/`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any

from vfs.errors import NoRoom, Unsupported
from vfs.storage.base import LINK_METADATA, decoded, encoded

#: R2 and S3 keep so many bytes of names and values at most (R2: error 10012 beyond 8,192).
MAX_METADATA = 8192
#: Names with a meaning of their own; the user's attributes of these names are stored with a prefix.
_MTIME, _ATIME, _MODE, _UID, _GID, _TARGET = "mtime", "atime", "mode", "uid", "gid", LINK_METADATA
_OWN = frozenset({_MTIME, _ATIME, _MODE, _UID, _GID, _TARGET})
_ESCAPE = "xattr-"
#: Names of S3 metadata are HTTP header names, and come back in lower case.
_NAME = re.compile(r"[a-z0-9!#$%&'*+.^_`|~-]{1,200}")
_NANO = 10**9


@dataclass(frozen=True, slots=True)
class Attributes:
    """None = not known: the mount's own. mtime_ns, atime_ns: nanoseconds since the epoch.

    target: of a symbolic link. user: everything else in the metadata, by its name there: the attributes
    `user.*` of a file.
    """

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    mtime_ns: int | None = None
    atime_ns: int | None = None
    target: str | None = None
    user: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Attributes:
        """As stored by whoever; what cannot be read is left where it is."""
        rest = dict(metadata)
        return cls(
            mode=_taken(rest, _MODE, lambda text: int(text, 8) & 0o7777),
            uid=_taken(rest, _UID, _natural),
            gid=_taken(rest, _GID, _natural),
            mtime_ns=_taken(rest, _MTIME, _nanoseconds),
            atime_ns=_taken(rest, _ATIME, _nanoseconds),
            target=_taken(rest, _TARGET, decoded),
            user=rest,
        )

    def metadata(self) -> dict[str, str]:
        """To be stored. Raises NoRoom when it is more than an object may have."""
        told = dict(self.user)
        if self.mode is not None:
            told[_MODE] = f"{self.mode:04o}"
        if self.uid is not None:
            told[_UID] = str(self.uid)
        if self.gid is not None:
            told[_GID] = str(self.gid)
        for name, time_ns in ((_MTIME, self.mtime_ns), (_ATIME, self.atime_ns)):
            if time_ns is not None:
                told[name] = f"{time_ns // _NANO}.{time_ns % _NANO:09d}"
        if self.target is not None:
            told[_TARGET] = encoded(self.target)
        if sum(len(name) + len(value) for name, value in told.items()) > MAX_METADATA:
            raise NoRoom(f"an object has room for {MAX_METADATA} bytes of attributes")
        return told

    def over(self, before: Attributes) -> Attributes:
        """What is known here, and for the rest what was before."""
        own = {name: getattr(self, name) for name in ("mode", "uid", "gid", "mtime_ns", "target")}
        known = {name: value for name, value in own.items() if value is not None}
        return replace(before, **known, user={**before.user, **self.user})

    # -- extended attributes ---------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Names of the user's attributes, without `user.`."""
        return [name.removeprefix(_ESCAPE) for name in self.user]

    def get(self, name: str) -> bytes:
        """The value of one. Raises KeyError."""
        return decoded(self.user[_stored(name)]).encode("utf-8", "surrogateescape")

    def with_user(self, name: str, value: bytes) -> Attributes:
        """One more, or another value. Raises Unsupported for what metadata cannot carry, NoRoom."""
        stored = _stored(name)
        if not _NAME.fullmatch(stored):
            raise Unsupported(f"attribute {name!r}: metadata has names in lower case, without spaces")
        try:
            text = value.decode("utf-8")
        except UnicodeDecodeError:
            raise Unsupported(f"attribute {name!r}: metadata carries text, this value is none") from None
        changed = replace(self, user={**self.user, stored: encoded(text)})
        changed.metadata()
        return changed

    def without_user(self, name: str) -> Attributes:
        """One less. Raises KeyError."""
        rest = dict(self.user)
        del rest[_stored(name)]
        return replace(self, user=rest)

    # -- in the journal --------------------------------------------------------------------------------

    def to_json(self) -> str:
        """Everything, exactly."""
        told = {"mode": self.mode, "uid": self.uid, "gid": self.gid, "mtime_ns": self.mtime_ns}
        told["atime_ns"] = self.atime_ns
        return json.dumps({**told, "target": self.target, "user": dict(self.user)})

    @classmethod
    def from_json(cls, text: str) -> Attributes:
        """What `to_json` gave."""
        return cls(**json.loads(text))


def _stored(name: str) -> str:
    return _ESCAPE + name if name in _OWN else name


def _taken(rest: dict[str, str], name: str, read: Any) -> Any:
    """A value out of the rest, or None, and the rest as it was, where it cannot be read."""
    try:
        value = read(rest[name])
    except (KeyError, ValueError, InvalidOperation, OverflowError):
        return None
    del rest[name]
    return value


def _natural(text: str) -> int:
    value = int(text)
    if not 0 <= value < 1 << 32:
        raise ValueError(text)
    return value


def _nanoseconds(text: str) -> int:
    value = Decimal(text)
    if not value.is_finite() or abs(value) >= 1 << 40:
        raise ValueError(text)
    return int(value * _NANO)
