"""Settings of the plugin: the table `[plugin.mp4]`."""

from __future__ import annotations

from dataclasses import dataclass

from vfs import ConfigError, Settings

_HWACCEL = {"off": False, "auto": True}


@dataclass(frozen=True, slots=True)
class Options:
    """hwaccel: decode frames on a device where there is one (`auto`; default `off`)."""

    hwaccel: bool = False

    @classmethod
    def load(cls, settings: Settings) -> Options:
        """Raises ConfigError that names the place and the key."""
        found = cls()
        for key, value in settings.plugin("mp4").items():
            origin = settings.origins.get(f"plugin.mp4.{key}", f"plugin.mp4.{key}")
            if key != "hwaccel":
                raise ConfigError(f"{origin}: unknown key {key}; there is hwaccel")
            if str(value) not in _HWACCEL:
                raise ConfigError(f"{origin}: hwaccel is {' or '.join(_HWACCEL)}, not {value!r}")
            found = cls(hwaccel=_HWACCEL[str(value)])
        return found
