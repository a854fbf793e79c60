"""Settings of the plugin: the table `[plugin.search]`."""

from __future__ import annotations

from dataclasses import dataclass

from vfs import ConfigError, Settings


@dataclass(frozen=True, slots=True)
class Options:
    """listed: show `search` in listings of the root."""

    listed: bool = False

    @classmethod
    def load(cls, settings: Settings) -> Options:
        """Raises ConfigError that names the place and the key."""
        found = cls(listed=settings.show_derived)
        for key, value in settings.plugin("search").items():
            origin = settings.origins.get(f"plugin.search.{key}", f"plugin.search.{key}")
            if key != "listed":
                raise ConfigError(f"{origin}: unknown key {key}; there is listed")
            if str(value).lower() not in ("true", "false", "yes", "no"):
                raise ConfigError(f"{origin}: listed is yes or no, not {value!r}")
            found = cls(listed=str(value).lower() in ("true", "yes"))
        return found
