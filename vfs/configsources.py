"""Where settings are given: a TOML file, the environment, `-o` options, flags; each value with its origin.

Nothing here knows a particular setting: the table of known ones comes from `vfs.config`.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, NamedTuple

from vfs.errors import ConfigError
from vfs.units import format_size, split_list


class Option(NamedTuple):
    """One setting, as documentation shows it."""

    key: str
    type: str
    default: object
    env: str
    flag: str
    help: str

    @property
    def default_text(self) -> str:
        """The default as it is written in a file; empty when there is none."""
        if self.key == "cache_dir":
            return "~/.cache/reelfs"
        return "" if self.default in (None, "", ()) else toml_value(self.default, self.type)


@dataclass(frozen=True, slots=True)
class Given:
    """A value as it was written; origin names the file, variable or flag and the key ("" = a default)."""

    value: object
    origin: str


Known = Mapping[str, Option]

#: Variables with our prefix that are not settings. `REELFS__*` is reelfs talking to its own processes.
NOT_SETTINGS = frozenset({"REELFS_CONFIG", "REELFS_DEBUG"})
_PRIVATE_PREFIXES = ("REELFS__", "REELFS_TEST")
_PLUGIN = "plugin."

#: No setting of ours is a secret; a plugin's key with such a name is not shown, should one be.
_SECRET_WORDS = ("secret", "password", "token", "credential")

#: What fstab, mount(8) and automounters hand to every file system. `rw` is among them: util-linux always
#: passes it, so it cannot mean "enable writing" (`read_write` does).
_MOUNT_WORDS = frozenset(
    {
        *("defaults", "rw", "auto", "noauto", "user", "users", "nouser", "nofail", "_netdev", "async"),
        *("dev", "nodev", "suid", "nosuid", "exec", "noexec"),
        *("atime", "noatime", "relatime", "norelatime", "diratime", "nodiratime"),
    }
)


def config_file(named: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: `--config`, else `REELFS_CONFIG`, else the user's own where there is one.

    Raises ConfigError when a file that was named does not exist.
    """
    if named is None:
        named = environ.get("REELFS_CONFIG") or None
    if named is not None:
        path = Path(os.path.expanduser(named))
        if not path.is_file():
            raise ConfigError(f"{path}: no such configuration file")
        return path
    base = environ.get("XDG_CONFIG_HOME")
    if not base and environ.get("HOME"):
        base = os.path.join(environ["HOME"], ".config")
    if not base:
        return None
    path = Path(base) / "reelfs" / "config.toml"
    return path if path.is_file() else None


def from_toml(path: Path, known: Known) -> dict[str, Given]:
    """The settings of a file. Raises ConfigError naming the file, and the line or the key."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    given = {}
    for key, value in _flattened(document, known):
        _check_known(key, known, f"{path}")
        given[key] = Given(value, f"{path}: {key}")
    return given


def plugin_names() -> frozenset[str]:
    """The names of installed plugins, which are those of their tables."""
    return frozenset(point.name for point in entry_points(group="vfs"))


def _flattened(document: Mapping[str, Any], known: Known) -> Iterable[tuple[str, object]]:
    """Dotted keys of a document. What is below `[plugin.NAME]` stays as it is: it belongs to the plugin, as
    does `[NAME]` of one that is installed. `write = true` is short for `read_write`.
    """
    for key, value in document.items():
        if key == "plugin" and isinstance(value, dict):
            for name, table in value.items():
                for inner, item in table.items() if isinstance(table, dict) else ():
                    yield f"{_PLUGIN}{name}.{inner}", item
        elif key == "write" and not isinstance(value, dict):
            yield "read_write", value
        elif isinstance(value, dict) and key in plugin_names():
            for inner, item in value.items():
                yield f"{_PLUGIN}{key}.{inner}", item
        elif isinstance(value, dict) and key not in known:
            for inner, item in value.items():
                yield f"{key}.{inner}", item
        else:
            yield key, value


def from_environment(environ: Mapping[str, str], known: Known) -> dict[str, Given]:
    """`REELFS_*`; an empty variable is one that is not set. Raises ConfigError for one that is no setting."""
    keys = {option.env: key for key, option in known.items()}
    given = {}
    for name, text in sorted(environ.items()):
        if not name.startswith("REELFS_") or name in NOT_SETTINGS or name.startswith(_PRIVATE_PREFIXES):
            continue
        key = keys.get(name) or _plugin_key(name)
        if key is None:
            raise ConfigError(f"environment: {name} is no setting{_did_you_mean(name, keys)}")
        if text:
            given[key] = Given(_plugin_value(key, text), f"environment: {name}")
    return given


def _plugin_key(name: str) -> str | None:
    """`REELFS_PLUGIN_MP4_SIZE` -> `plugin.mp4.size`."""
    plugin, _, key = name.removeprefix("REELFS_PLUGIN_").lower().partition("_")
    return f"{_PLUGIN}{plugin}.{key}" if name.startswith("REELFS_PLUGIN_") and plugin and key else None


def _plugin_value(key: str, text: str) -> object:
    """Only the plugin knows the type of its keys, so text that is a TOML value is taken as one."""
    if not key.startswith(_PLUGIN):
        return text
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


def from_options(options: Sequence[str], known: Known) -> dict[str, Given]:
    """`-o KEY=VALUE,KEY,...`: a key alone is `yes`; lists may repeat their key, else the last one wins."""
    given: dict[str, Given] = {}
    for word in (word for text in options for word in split_list(text)):
        key, equals, value = word.partition("=")
        key = key.replace("-", "_")
        if word in _MOUNT_WORDS or word.startswith("x-") or key == "comment":
            continue
        if word in ("ro", "rw", "write"):
            given["read_write"] = Given(word != "ro", f"command line: -o {word}")
            continue
        origin = f"command line: -o {key}"
        _check_known(key, known, "command line: -o")
        new: object = _plugin_value(key, value) if equals else "true"
        old = given[key].value if key in given else None
        if key in known and known[key].type == "list":
            new = [*(old if isinstance(old, list) else ()), *([value] if value else ())]
        given[key] = Given(new, origin)
    return given


def from_flags(flags: Mapping[str, object], known: Known) -> dict[str, Given]:
    """Values of command-line flags by key; None = not given."""
    given = {}
    for key, value in flags.items():
        if value is None:
            continue
        flag = known[key].flag
        if key == "read_write":
            flag = "--read-write" if value else "--read-only"
        given[key] = Given(value, f"command line: {flag}")
    return given


def nested(given: Mapping[str, Given]) -> dict[str, Any]:
    """Dotted keys as tables within tables."""
    tree: dict[str, Any] = {}
    for key, item in given.items():
        *tables, last = key.split(".", 2) if key.startswith(_PLUGIN) else key.split(".")
        table = tree
        for name in tables:
            table = table.setdefault(name, {})
        table[last] = item.value
    return tree


def _check_known(key: str, known: Known, origin: str) -> None:
    if key in known or (key.startswith(_PLUGIN) and key.count(".") >= 2):
        return
    raise ConfigError(f"{origin}: {key}: no such setting{_did_you_mean(key, known)}")


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    import difflib  # not at the top: only mistakes pay for it

    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def toml_value(value: object, kind: str = "") -> str:
    """A value as TOML writes it. Raises TypeError for what TOML has no way to write."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        if kind == "size":
            return f'"{format_size(value)}"'
        return f"0o{value:03o}" if kind == "octal number" else str(value)
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, (str, Path)):
        return _toml_text(str(value))
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_key(k)} = {toml_value(v)}" for k, v in value.items()) + "}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")


def _toml_text(text: str) -> str:
    """A basic string: quotes, backslashes and control characters escaped."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in quoted) + '"'


def _toml_key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "-_") for c in key)
    return key if bare else _toml_text(key)


def render_toml(values: Mapping[str, Any], origins: Mapping[str, str], known: Known) -> str:
    """Settings as a TOML file, tables last; what has no value is left as a comment."""
    top: list[str] = []
    tables: list[str] = []
    for key, option in known.items():
        table, dot, name = key.rpartition(".")
        if dot and f"[{table}]" not in tables:
            tables += ["", f"[{table}]"]
        value = values[table][name] if dot else values[key]
        (tables if dot else top).append(_line(name, value, option.type, origins.get(key)))
    for plugin, entries in values.get("plugin", {}).items():
        tables += ["", f"[plugin.{_toml_key(plugin)}]"]
        for name, value in entries.items():
            tables.append(_line(_toml_key(name), value, "", origins.get(f"{_PLUGIN}{plugin}.{name}")))
    return "\n".join(["# The settings in effect; `default` where nothing was given.", "", *top, *tables, ""])


def _line(name: str, value: object, kind: str, origin: str | None) -> str:
    if value is None:
        return f"# {name} is not set"
    if any(word in name.lower() for word in _SECRET_WORDS):
        return f"# {name} is not shown ({origin or 'default'})"
    return f"{name} = {toml_value(value, kind)}  # {origin or 'default'}"


def markdown(options: Iterable[Option]) -> str:
    """The table of settings as documentation shows it; a test keeps the page equal to it."""
    rows = ["| setting | is | default | environment | flag | what it does |", "|---|---|---|---|---|---|"]
    for option in options:
        default = f"`{option.default_text}`" if option.default_text else ""
        cells = (f"`{option.key}`", option.type, default, f"`{option.env}`", f"`{option.flag}`", option.help)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows) + "\n"
