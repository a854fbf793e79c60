"""`reelfs plugin new NAME`: a plugin that works, with its test, to be changed into another one."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from vfs.errors import ConfigError

_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")

_PYPROJECT = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "reelfs-{name}"
version = "0.1"
description = "A plugin for reelfs"
requires-python = ">=3.11"
dependencies = ["reelfs"]

[project.entry-points.vfs]
{name} = "reelfs_{name}"
"""

_MODULE = '''\
"""`FILE@/{name}.txt` beside every video: its size and first bytes. A start: see docs/plugins.md of reelfs."""

from collections.abc import Mapping
from functools import partial

from vfs import Bytes, Layout, Node, Place, View, hookimpl

#: Part of every version: change it with the code, and nothing stale is served.
VERSION = "{name}.1"
NAME = "{name}.txt"


@hookimpl
def vfs_views() -> list[View]:
    """The views of this plugin; called once, when a mount starts."""
    return [{title}()]


class {title}:
    """What it derives from a video."""

    name = "{name}"

    def applies(self, place: Place) -> bool:
        """By name and type only: it is asked for every file that is listed."""
        return not place.is_folder and place.name.lower().endswith((".mp4", ".mov"))

    async def entries(self, place: Place) -> Mapping[str, Node | None]:
        """The names in `FILE@/`. None: made by `resolve`, when it is looked at."""
        return {{NAME: None}}

    async def resolve(self, place: Place, name: str) -> Node | None:
        """Any name after `FILE@/` or `NAME@`; None: not mine."""
        if name != NAME:
            return None
        return Bytes(
            produce=partial(summary, place),
            version=f"{{VERSION}}:{{place.path}}:{{place.version}}",
            mtime_ns=place.mtime_ns,
            reads=Layout([place.extent(0, min(16, place.size))]),
        )


async def summary(place: Place) -> bytes:
    """The text of the file: made once per version of the video, when somebody reads it."""
    head = await place.read(0, min(16, place.size))
    return f"{{place.name}}: {{place.size}} bytes, beginning with {{head.hex()}}\\n".encode()
'''

_TEST = '''\
"""The contract of views, and what this one says."""

from reelfs_{name} import {title}

from vfs.testing import ViewContract


class Test{title}(ViewContract):
    objects = {{"games/a.mp4": bytes(range(200)), "games/notes.txt": b"no video"}}
    names = {{"games/a.mp4": ["{name}.txt"]}}

    def views(self) -> list[{title}]:
        return [{title}()]
'''

_README = """\
# reelfs-{name}

A plugin for [reelfs](https://pypi.org/project/reelfs/): `FILE@/{name}.txt` beside every video.

    pip install -e .
    reelfs plugins
    pytest
"""


def new(name: str, into: Path) -> list[Path]:
    """Write the plugin `name` below a folder that does not exist yet; the files. Raises ConfigError."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot be the name of a plugin: small letters, digits and `_`")
    folder = into / f"reelfs-{name.replace('_', '-')}"
    if folder.exists():
        raise ConfigError(f"{folder} exists already")
    title = "".join(part.capitalize() for part in name.split("_") if part)
    files = {
        "pyproject.toml": _PYPROJECT,
        f"reelfs_{name}.py": _MODULE,
        f"tests/test_{name}.py": _TEST,
        "README.md": _README,
    }
    made = []
    for path, text in files.items():
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.format(name=name, title=title), encoding="utf-8")
        made.append(file)
    return made
