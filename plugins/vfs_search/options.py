"""Settings of the plugin: the table `[plugin.search]`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import xxhash

from vfs import ConfigError, Descriptor, Settings, parse_size
from vfs_search.sampling import Plan

#: Descriptors there are beside grad512, which is always made: what they are called, and what makes them.
KNOWN = {"rep0st108": ("rep0st108", "vfs_search.features", "rep0st108")}


@dataclass(frozen=True, slots=True)
class Options:
    """See docs/configuration.md. Times are seconds; 0 as a limit is no limit."""

    listed: bool = True
    folder: str = ""
    index_budget: int = 20 << 30
    rate: float = 2.0
    window_rate: float = 2.0
    descriptors: tuple[str, ...] = ("grad512",)
    keyframe_interval: float = 1.0
    max_keyframes: int = 0
    max_duration: float = 0.0
    frame_batch_size: int = 8
    max_upload_size_mb: int = 200
    min_matches: int = 3
    similarity_threshold: float = 0.8
    wait: float = 10.0
    adopt: int = 1 << 30

    @classmethod
    def load(cls, settings: Settings) -> Options:
        """Raises ConfigError that names the place and the key."""
        found = cls()
        known = {field.name: getattr(found, field.name) for field in fields(cls)}
        for key, value in settings.plugin("search").items():
            origin = settings.origins.get(f"plugin.search.{key}", f"plugin.search.{key}")
            if key not in known:
                raise ConfigError(f"{origin}: unknown key {key}; there are {', '.join(known)}")
            try:
                found = replace(found, **{key: _read(key, value, known[key])})
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{origin}: {key}: {error}") from None
        return found

    def plan(self, further: Mapping[str, Descriptor] | None = None) -> Plan:
        """How videos are looked at. further: descriptors of other plugins. Raises ConfigError."""
        known = KNOWN | {d.name: (d.name, d.module, d.function) for d in (further or {}).values()}
        wanted = [name for name in self.descriptors if name != "grad512"]
        for name in wanted:
            if name not in known:
                raise ConfigError(f"plugin.search.descriptors: {name} is none of grad512, {', '.join(known)}")
        return Plan(
            rate=self.rate,
            window_rate=self.window_rate,
            keyframe_interval=self.keyframe_interval,
            batch=self.frame_batch_size,
            max_pictures=self.max_keyframes,
            extra=tuple(known[name] for name in wanted),
        )

    def place(self, settings: Settings) -> Path:
        """The folder in which the index of a source is kept on this machine."""
        if self.folder:
            base = Path(self.folder).expanduser().absolute()
        elif settings.cache_dir is not None:
            base = settings.cache_dir / "search"
        else:
            home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
            base = Path(home) / "reelfs" / "search"
        return base / xxhash.xxh3_64_hexdigest(settings.source.encode("utf-8", "surrogateescape"))


def _read(key: str, value: Any, default: Any) -> Any:
    """A value as it is written in TOML or given as text. Raises ValueError, TypeError."""
    if isinstance(default, bool):
        if str(value).lower() not in ("true", "false", "yes", "no"):
            raise ValueError(f"yes or no, not {value!r}")
        return str(value).lower() in ("true", "yes")
    if isinstance(default, tuple):
        return tuple(str(one).strip() for one in (value.split(",") if isinstance(value, str) else value))
    if isinstance(default, str):
        return str(value)
    if key in ("index_budget", "adopt"):
        return parse_size(value) if isinstance(value, str) else int(value)
    number = type(default)(value)
    if not 0 <= number < 1e9 or (number == 0 and key in ("frame_batch_size", "max_upload_size_mb")):
        raise ValueError(f"{value!r} is out of range")
    return number
