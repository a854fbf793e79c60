"""Settings of the plugin: the table `[h4mk]`, and the environment names of the original."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfs import ConfigError, Pool, Settings
from vfs_h4mk.keys import KeyFile, read_keys

MIB = 1 << 20
#: The original's names for what it documents (and never read).
ENVIRONMENT = {
    "HARMONY_CACHE_MB": "block_cache_mb",
    "HARMONY_VERIFY_INTEGRITY": "verify_integrity",
    "HARMONY_MAX_BLOCK_SIZE": "max_block_size",
}
_YES, _NO = frozenset(("1", "true", "yes", "on")), frozenset(("0", "false", "no", "off"))


@dataclass(frozen=True, slots=True)
class Options:
    """block_cache_mb: decoded blocks kept at most, within the memory budget of the mount. verify_integrity:
    check a block's CRC before it is served. max_block_size: bytes of a decoded block at most. keys: of
    masked and encrypted containers.
    """

    block_cache_mb: int = 2048
    verify_integrity: bool = True
    max_block_size: int = 10 * MIB
    keys: KeyFile = field(default_factory=KeyFile, repr=False)

    @property
    def pool(self) -> Pool:
        """The share of the memory budget that decoded blocks take."""
        return Pool("h4mk", self.block_cache_mb * MIB)

    @classmethod
    def load(cls, settings: Settings, environ: Mapping[str, str] | None = None) -> Options:
        """From `[h4mk]`, else the environment, else the defaults. Raises ConfigError naming the key."""
        environment = os.environ if environ is None else environ
        told = {key: (environment[name], name) for name, key in ENVIRONMENT.items() if environment.get(name)}
        for key, value in settings.plugin("h4mk").items():
            told[key] = (value, settings.origins.get(f"plugin.h4mk.{key}", f"h4mk.{key}"))
        readers = {
            "block_cache_mb": _number,
            "verify_integrity": _flag,
            "max_block_size": _number,
            "keys": _keys,
        }
        found: dict[str, Any] = {}
        for key, (value, origin) in told.items():
            if key not in readers:
                raise ConfigError(f"{origin}: unknown key {key}; there are {', '.join(readers)}")
            found[key] = readers[key](value, origin)
        return cls(**found)


def _number(value: object, origin: str) -> int:
    text = str(value).strip().replace("_", "")
    if isinstance(value, bool) or not text.isdecimal():
        raise ConfigError(f"{origin}: {value!r} is not a whole number")
    return int(text)


def _flag(value: object, origin: str) -> bool:
    text = str(value).strip().lower()
    if text not in _YES | _NO:
        raise ConfigError(f"{origin}: {value!r} is neither yes nor no")
    return text in _YES


def _keys(value: object, origin: str) -> KeyFile:
    """A relative path is one beside the file that names it."""
    if not isinstance(value, str):
        raise ConfigError(f"{origin}: the path of a key file is text")
    named, found, _ = origin.rpartition(": ")
    beside = Path(named).parent if found and os.path.isfile(named) else Path.cwd()
    return read_keys(beside / os.path.expanduser(value))
