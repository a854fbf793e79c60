"""Settings: command line > environment `REELFS_*` > TOML file > defaults, one precedence for all.

Every value keeps its origin, so an error names the file (or variable, or flag) and the key in one line.
Secrets are not settings: credentials come from the environment or the profiles of the store's own tools,
and a source that carries them is refused.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from vfs import configsources
from vfs.configsources import Given
from vfs.errors import ConfigError
from vfs.units import parse_seconds, parse_size, split_list

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


def _size(value: object) -> object:
    return parse_size(value) if isinstance(value, str) else value


def _seconds(value: object) -> object:
    return parse_seconds(value) if isinstance(value, str) else value


def _octal(value: object) -> object:
    """Text is octal, as umask(1) reads it (022 and 0o022 alike); a TOML number is what it says (0o022)."""
    if isinstance(value, str):
        try:
            return int(value, 8)
        except ValueError:
            raise ValueError(f"{value!r} is not an octal number such as 022") from None
    return value


def _list(value: object) -> object:
    return split_list(value) if isinstance(value, str) else value


def _path(value: object) -> object:
    """`~` is the home, a relative path counts from the current directory, `none` is no path."""
    if isinstance(value, str):
        return None if value in ("", "none") else Path(os.path.abspath(os.path.expanduser(value)))
    return value


def _source(value: object) -> object:
    """A plain path is made absolute (the daemon leaves the current directory); a URL stays."""
    if not isinstance(value, str) or not value:
        return value
    scheme, found, rest = value.partition("://")
    if not found:
        return os.path.abspath(os.path.expanduser(value))
    if scheme in ("s3", "r2") and "@" in rest.split("/", 1)[0]:
        raise ValueError(
            "credentials do not belong in a source (they show in `ps` and in status files): "
            "set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY, or use an AWS profile"
        )
    return value


Size = Annotated[int, BeforeValidator(_size), Field(ge=0)]
Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
Octal = Annotated[int, BeforeValidator(_octal), Field(ge=0, le=0o777)]
Names = Annotated[tuple[str, ...], BeforeValidator(_list)]
OptionalPath = Annotated[Path | None, BeforeValidator(_path)]
Source = Annotated[str, BeforeValidator(_source)]
LOG_LEVELS = ("debug", "info", "warning", "error")
LogLevel = Annotated[
    Literal["debug", "info", "warning", "error"],
    BeforeValidator(lambda v: v.lower() if isinstance(v, str) else v),
]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=False)


class Workers(_Table):
    """`[workers]`: the processes that decode pictures and sound."""

    processes: int = Field(
        default=2, ge=1, le=64, description="decoding processes at most; started when needed"
    )
    deadline: Seconds = Field(default=20.0, gt=0, description="one decoding job is killed after this long")
    memory: Size = Field(default=4 * GIB, description="address space one process may have")
    kept: Size = Field(
        default=128 * MIB, description="decoded frames one process keeps for the ones asked for next"
    )
    isolate: bool = Field(
        default=True,
        description="the processes have no files, no network and no programs (Landlock, seccomp)",
    )


class Limits(_Table):
    """`[limits]`: what a day may cost (UTC); 0 is no limit. Beyond it reads of what is not cached fail."""

    class_a_per_day: int = Field(default=0, ge=0, description="Class A operations a day (lists, writes)")
    class_b_per_day: int = Field(default=0, ge=0, description="Class B operations a day (reads, heads)")
    egress_per_day: Size = Field(default=0, description="bytes fetched a day")

    def by_name(self) -> dict[str, int]:
        """As `vfs.usage` takes them."""
        return {
            "class_a": self.class_a_per_day,
            "class_b": self.class_b_per_day,
            "egress": self.egress_per_day,
        }


class Crawlers(_Table):
    """`[crawlers]`: programs that open every file: thumbnailers, indexers, media scanners."""

    programs: Names = Field(
        default=(
            *("tumblerd", "tracker-miner*", "tracker-extract*", "localsearch*", "baloo_file*"),
            *("ffmpegthumbnail*", "totem-video-thu*", "gnome-thumbnail*", "evince-thumbnai*"),
            *("Plex Media Scan*", "jellyfin-scan*", "mediainfo", "updatedb*", "plocate*"),
        ),
        description="names of programs, as `ps -o comm` shows them; patterns",
    )
    budget: Size = Field(default=16 * MIB, description="bytes fetched for one file that a crawler opens")


class Events(_Table):
    """`[events]`: changes of the bucket as they happen."""

    queue: str = Field(
        default="", description="URL of a Cloudflare queue with R2's notifications, pulled; empty: none"
    )


class MetricsRules(_Table):
    """`[metrics]`: the endpoint for Prometheus."""

    listen: str = Field(
        default="", description="127.0.0.1:PORT, [::1]:PORT or unix:PATH to serve metrics at; empty: nowhere"
    )


class PluginRules(_Table):
    """`[plugins]`: which plugins are used."""

    block: Names = Field(default=(), description="names of plugins not to load")


class WriteRules(_Table):
    """`[write]`: what may be written, and when it is in the store."""

    allow: Names = Field(
        default=(), description="prefixes that may be written to (default with read_write: everything)"
    )
    protect: Names = Field(
        default=("games/",),
        description="prefixes, at any depth, whose existing objects are never changed or removed",
    )
    fsync: Literal["store", "local"] = Field(
        default="store", description="what fsync waits for: the store, or the journal on the local disk"
    )
    delay: Seconds = Field(
        default=1.0,
        description="a closed file is left alone so long, then sent; while programs write 5 times that",
    )
    databases: Seconds = Field(
        default=300.0, description="a database that is never closed is sent this often (0: when it is closed)"
    )
    dir: OptionalPath = Field(
        default=None, description="folder of the journal and of what is not sent yet (default: cache_dir)"
    )
    staging: Size = Field(
        default=0, description="bytes that may wait or be written at one time (0: what the disk has)"
    )
    free_floor: Size = Field(default=256 * MIB, description="bytes that stay free on the disk they wait on")
    flush_timeout: Seconds = Field(
        default=60.0, description="unmounting waits this long for what is not sent yet; the rest stays"
    )
    trash_ttl: Seconds = Field(
        default=7 * 86400.0, description="what is removed can be had back this long; 0: it is gone"
    )
    max_deletes_per_minute: int = Field(
        default=1000, ge=0, description="removing more stored files is refused (0: any number)"
    )


class Settings(_Table):
    """All settings of a mount, checked. Immutable; sizes are bytes, times are seconds."""

    source: Source = Field(
        default="", description="what is mounted: a folder, s3://BUCKET/PREFIX or r2://BUCKET/PREFIX"
    )
    mountpoint: OptionalPath = Field(default=None, description="the folder it is mounted on")
    cache_dir: OptionalPath = Field(
        default=None,
        description="folder of the disk cache; `none` switches it off (the default for a local source)",
    )
    cache_size: Size = Field(default=10 * GIB, description="the disk cache never holds more")
    memory: Size = Field(
        default=256 * MIB, ge=16 * MIB, description="blocks and derived tables kept in memory at most"
    )
    foreground: bool = Field(default=False, description="stay in the foreground and log to the terminal")
    read_write: bool = Field(default=False, description="allow writing, within the rules of `[write]`")
    allow_other: bool = Field(default=False, description="other users may use the mount")
    uid: int | None = Field(
        default=None, ge=0, description="owner shown for every file (default: who mounts)"
    )
    gid: int | None = Field(
        default=None, ge=0, description="group shown for every file (default: who mounts)"
    )
    umask: Octal = Field(default=0, description="permission bits taken away from 0444 and 0555, in octal")
    nonempty: bool = Field(default=False, description="mount even where the mountpoint has entries")
    show_derived: bool = Field(default=False, description="list the companion directories `FILE@/`")
    expand: Names = Field(default=("*.h4mk",), description="patterns of file names shown as directories")
    immutable: Names = Field(
        default=(), description="prefixes whose objects never change: not revalidated at open"
    )
    attr_ttl: Seconds = Field(default=1.0, description="attributes of a file are trusted this long")
    dir_ttl: Seconds = Field(default=60.0, description="a listing is trusted this long")
    negative_ttl: Seconds = Field(default=1.0, description="`no such file` is trusted this long")
    deadline: Seconds = Field(default=30.0, gt=0, description="an operation that waits longer fails")
    connections: int = Field(
        default=32, ge=1, le=256, description="requests to the store at one time, at most"
    )
    read_ahead: Size = Field(
        default=64 * MIB, description="bytes fetched ahead of one sequential reader, at most"
    )
    coalesce_gap: Size = Field(
        default=64 * KIB, description="ranges this near to each other are fetched as one"
    )
    log_level: LogLevel = Field(default="info", description="debug, info, warning or error")
    log_format: Literal["auto", "text", "json"] = Field(
        default="auto", description="lines of text or of JSON; auto: JSON into systemd's journal, else text"
    )
    credentials: OptionalPath = Field(
        default=None,
        description="file of `R2_ACCESS_KEY_ID=...` lines, readable by its owner alone; read again by SIGHUP",
    )
    log_file: OptionalPath = Field(
        default=None,
        description="file to log to (default: the terminal, or ~/.local/state/reelfs/MOUNTPOINT.log)",
    )
    workers: Workers = Workers()
    limits: Limits = Limits()
    crawlers: Crawlers = Crawlers()
    metrics: MetricsRules = MetricsRules()
    events: Events = Events()
    plugins: PluginRules = PluginRules()
    write: WriteRules = WriteRules()
    plugin_tables: dict[str, dict[str, Any]] = Field(default={}, alias="plugin")
    #: The configuration file that was read, for `reloaded`.
    file: OptionalPath = Field(default=None, repr=False)
    #: key -> where its value was given; keys that kept their default are not in it.
    origins: dict[str, str] = Field(default={}, repr=False)

    @property
    def is_local(self) -> bool:
        """True when the source is a folder of this machine: nothing is worth a disk cache."""
        return _is_local(self.source)

    @property
    def writes(self) -> bool:
        """True for a mount that can be written to: by `read_write`, or by prefixes in `write.allow`."""
        return self.read_write or bool(self.write.allow)

    @property
    def write_dir(self) -> Path:
        """Where what is written waits."""
        return self.write.dir or self.cache_dir or default_cache_dir(os.environ)

    def plugin(self, name: str) -> Mapping[str, Any]:
        """The table `[plugin.NAME]`, empty when there is none; a plugin checks its own keys."""
        return self.plugin_tables.get(name, {})

    @classmethod
    def load(
        cls,
        flags: Mapping[str, object] | None = None,
        *,
        options: Sequence[str] = (),
        config: str | Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> Settings:
        """The settings in effect.

        flags: values of command-line flags by key, None = not given. options: the texts of `-o`.
        config: the file of `--config`. Raises ConfigError naming file and key.
        """
        environment = os.environ if environ is None else environ
        known = KNOWN
        given: dict[str, Given] = {}
        file = configsources.config_file(config, environment)
        if file is not None:
            given |= configsources.from_toml(file, known)
        given |= configsources.from_environment(environment, known)
        given |= configsources.from_options(options, known)
        given |= configsources.from_flags(flags or {}, known)
        return cls._checked(given, environment, file)

    def reloaded(self) -> Settings:
        """These settings, with what the configuration file says by now. Raises ConfigError."""
        given = configsources.from_toml(self.file, KNOWN) if self.file else {}
        for key, origin in self.origins.items():
            if not origin.startswith(f"{self.file}: "):
                given[key] = Given(self.value(key), origin)
        return self._checked(given, os.environ, self.file)

    def value(self, key: str) -> Any:
        """The value of a setting by its dotted key, as a plain JSON value. Raises KeyError."""
        found: Any = self.to_dict()
        for name in key.split("."):
            found = found[name]
        return found

    @classmethod
    def _checked(
        cls, given: dict[str, Given], environ: Mapping[str, str], file: Path | None = None
    ) -> Settings:
        source = str(given["source"].value) if "source" in given else ""
        if "cache_dir" not in given and not _is_local(source):
            given["cache_dir"] = Given(str(default_cache_dir(environ)), "")
        origins = {key: g.origin for key, g in given.items() if g.origin}
        try:
            return cls.model_validate({**configsources.nested(given), "origins": origins, "file": file})
        except ValidationError as error:
            raise ConfigError(_one_line(error, given)) from None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """The settings `to_dict` wrote. Raises ConfigError."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_one_line(error, {})) from None

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON values, to hand to another process."""
        return self.model_dump(mode="json", by_alias=True)

    def to_toml(self) -> str:
        """The settings in effect as a TOML file that gives them again; comments say where each came from."""
        return configsources.render_toml(self.to_dict(), self.origins, KNOWN)

    @classmethod
    def describe(cls) -> tuple[configsources.Option, ...]:
        """Every setting: key, type, default, environment variable, flag and what it does."""
        return tuple(KNOWN.values())


def _is_local(source: str) -> bool:
    return "://" not in source or source.startswith(("file://", "memory://"))


def default_cache_dir(environ: Mapping[str, str]) -> Path:
    """`$XDG_CACHE_HOME/reelfs`, else `~/.cache/reelfs`."""
    base = environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(base) / "reelfs"


def _one_line(error: ValidationError, given: Mapping[str, Given]) -> str:
    """The first mistake: where it was written, its key, what is wrong."""
    first = error.errors(include_url=False, include_context=False)[0]
    parts = [str(part) for part in first["loc"]]
    keys = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    message = first["msg"].removeprefix("Value error, ")
    for key in keys:
        if key in given and given[key].origin:
            return f"{given[key].origin}: {message}"
    return f"settings: {keys[0] if keys else '?'}: {message}"


#: Settings with a flag of their own; any other is given as `-o KEY=VALUE`.
_FLAGS = {
    "source": "SOURCE",
    "mountpoint": "MOUNTPOINT",
    "read_write": "--read-write / --read-only",
} | {
    key: "--" + key.replace("_", "-")
    for key in (
        *("cache_dir", "cache_size", "memory", "foreground", "allow_other"),
        *("uid", "gid", "umask", "show_derived", "log_level", "log_file"),
    )
}
_WRITTEN: Mapping[object, str] = {
    _size: "size",
    _seconds: "duration",
    _octal: "octal number",
    _list: "list",
    _path: "path",
}
_PLAIN: Mapping[object, str] = {int: "number", int | None: "number", bool: "yes or no"}


def _type_name(field: FieldInfo) -> str:
    """What a reader writes for this setting."""
    for mark in field.metadata:
        if isinstance(mark, BeforeValidator) and mark.func in _WRITTEN:
            return _WRITTEN[mark.func]
    return _PLAIN.get(field.annotation, "text")


_HIDDEN = {"plugin_tables", "origins", "file"}


def _describe() -> dict[str, configsources.Option]:
    """The table of settings, made from the models so that it cannot differ from them."""
    known: dict[str, configsources.Option] = {}

    def add(prefix: str, model: type[BaseModel]) -> None:
        for name, field in model.model_fields.items():
            key = prefix + name
            if key in _HIDDEN:
                continue
            if isinstance(field.default, _Table):
                add(f"{key}.", type(field.default))
                continue
            known[key] = configsources.Option(
                key=key,
                type=_type_name(field),
                default=field.default,
                env="REELFS_" + key.upper().replace(".", "_"),
                flag=_FLAGS.get(key, f"-o {key}=VALUE"),
                help=field.description or "",
            )

    add("", Settings)
    return known


KNOWN: Mapping[str, configsources.Option] = _describe()
