"""`reelfs service install`: a mount that systemd starts at boot, of this machine or of one user."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from vfs import configsources
from vfs.config import KNOWN, Settings
from vfs.errors import ConfigError, ReelfsError

#: An instance name as it stands in file names and unit names without escaping.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,63}")
UNIT = "reelfs@.service"
_ENV_TEXT = """\
# Secrets of the reelfs mount {name}, read at its start and by `systemctl reload`. For root alone (0600).
#R2_ACCOUNT_ID=
#R2_ACCESS_KEY_ID=
#R2_SECRET_ACCESS_KEY=
"""


@dataclass
class Installed:
    """What was written, and what is still to be done by hand (commands)."""

    files: list[Path] = field(default_factory=list)
    todo: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things go. root: all paths lie below it (`/`, or a file system that is being built); caches: as
    the mount sees it."""

    root: Path
    user: bool
    config: Path
    units: Path
    caches: Path

    @classmethod
    def of_system(cls, root: Path) -> Layout:
        """`/etc/reelfs` and `/etc/systemd/system`."""
        return cls(root, False, root / "etc/reelfs", root / "etc/systemd/system", Path("/var/cache/reelfs"))

    @classmethod
    def of_user(cls, root: Path, environ: dict[str, str] | None = None) -> Layout:
        """`~/.config/reelfs` and `~/.config/systemd/user`."""
        given = environ or dict(os.environ)
        config = Path(given.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config"))
        caches = Path(given.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
        below = root / config.relative_to("/")
        return cls(root, True, below / "reelfs", below / "systemd/user", caches / "reelfs")


def unit_folder() -> Path:
    """The unit files that come with reelfs: in the package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    for folder in (here / "_systemd", here.parent / "systemd"):
        if folder.is_dir():
            return folder
    raise ReelfsError("the unit files are missing: install reelfs again")


def program() -> str:
    """The command `reelfs` of this installation, as a unit calls it."""
    beside = Path(sys.executable).with_name("reelfs")
    found = str(beside) if beside.exists() else shutil.which("reelfs")
    if found is None:
        raise ReelfsError("no command `reelfs` beside this Python: install the package")
    return found


def unit_text(layout: Layout) -> str:
    """The unit, with the program of this installation in it."""
    name = "user/" + UNIT if layout.user else UNIT
    return (unit_folder() / name).read_text().replace("@reelfs@", program())


def install(
    name: str, settings: Settings, layout: Layout, *, replace: bool = False, start: bool = True
) -> Installed:
    """Write settings and unit of the mount `name`, and enable it. Raises ConfigError where it is there."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} cannot be the name of a service: letters, digits, `_`, `.` and `-`")
    if settings.mountpoint is None or not settings.source:
        raise ConfigError("SOURCE or MOUNTPOINT is missing: reelfs service install NAME SOURCE MOUNTPOINT")
    toml = layout.config / f"{name}.toml"
    if toml.exists() and not replace:
        raise ConfigError(f"{toml} exists already: choose another name, or add --replace")
    done = Installed()
    env = layout.config / f"{name}.env"
    _write(done, toml, config_text(name, settings, None if settings.is_local else env, layout), 0o644)
    if not settings.is_local and settings.credentials is None and not env.exists():
        _write(done, env, _ENV_TEXT.format(name=name), 0o600)
        done.todo.append(f"write the keys into {env}")
    _write(done, layout.units / UNIT, unit_text(layout), 0o644)
    point = layout.root / settings.mountpoint.relative_to("/")
    point.mkdir(parents=True, exist_ok=True)
    _enable(done, name, layout, start=start and not done.todo)
    return done


def config_text(name: str, settings: Settings, env: Path | None, layout: Layout) -> str:
    """The settings that were given, as a file."""
    keys = [key for key in settings.origins if key in KNOWN and key != "foreground"]
    given = {key: settings.value(key) for key in keys}
    if env is not None and settings.credentials is None:
        given["credentials"] = "/" + str(env.relative_to(layout.root))
    if not settings.is_local and "cache_dir" not in given:
        given["cache_dir"] = layout.caches / name  # a cache folder has one mount
    plain = [key for key in KNOWN if key in given and "." not in key]
    lines = [f"{key} = {configsources.toml_value(given[key], KNOWN[key].type)}" for key in plain]
    tables: dict[str, list[str]] = {}
    for key in (key for key in KNOWN if key in given and "." in key):
        table, _, last = key.rpartition(".")
        value = configsources.toml_value(given[key], KNOWN[key].type)
        tables.setdefault(table, []).append(f"{last} = {value}")
    for table, entries in tables.items():
        lines += ["", f"[{table}]", *entries]
    return "\n".join([*lines, ""])


def _write(done: Installed, path: Path, text: str, mode: int) -> None:
    """Whole or not at all, and never readable by more than `mode` says. Raises ConfigError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
        new.replace(path)
    except OSError as error:
        mend = ": run it with sudo, or add --user" if isinstance(error, PermissionError) else ""
        raise ConfigError(f"{path} cannot be written: {error.strerror}{mend}") from None
    done.files.append(path)


def _enable(done: Installed, name: str, layout: Layout, *, start: bool) -> None:
    """Through systemctl where systemd runs here; else what is to be run is told."""
    tool, unit = shutil.which("systemctl"), f"reelfs@{name}.service"
    scope = ["--user"] if layout.user else []
    elsewhere = layout.root != Path("/")
    if tool is not None and elsewhere and not layout.user:
        subprocess.run([tool, f"--root={layout.root}", "enable", unit], check=True, capture_output=True)
        return
    running = Path("/run/systemd/system").is_dir()
    commands = [
        ["systemctl", *scope, "daemon-reload"],
        ["systemctl", *scope, "enable", *(["--now"] if start else []), unit],
    ]
    if elsewhere or tool is None or not running:
        done.todo += [" ".join(command) for command in commands]
        return
    for command in commands:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise ReelfsError(f"{' '.join(command)}: {told.stderr.strip()}")
    if not start:
        done.todo.append(f"systemctl {' '.join([*scope, 'start', unit])}")
