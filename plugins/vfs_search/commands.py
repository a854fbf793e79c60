"""`reelfs search`: the same questions on the command line, without a mount."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vfs import (
    ConfigError,
    ConfigOption,
    JsonOption,
    Malformed,
    NotFound,
    Runtime,
    SettingOptions,
    Settings,
    in_trio,
    open_runtime,
)
from vfs_search.local import Dropped
from vfs_search.options import Options
from vfs_search.results import JSON, STATUS


def search(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A folder, s3://BUCKET/PREFIX or r2://...")],
    query: Annotated[
        str | None,
        typer.Argument(metavar="[QUERY]", help="As below search/: text/tag:goal, clip/PATH@5s-9s."),
    ] = None,
    image: Annotated[
        Path | None, typer.Option("--image", metavar="FILE", help="Look for this picture or video.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    options: SettingOptions = None,
) -> None:
    """Search SOURCE by words, by a moment of one of its videos, or by a file; nothing need be mounted."""
    if (query is None) == (image is None):
        raise ConfigError("say what to look for: QUERY, or --image FILE")
    settings = Settings.load({"source": source}, options=options or (), config=config)
    settings = settings.model_copy(update={"cache_size": 0})
    in_trio(partial(_search, settings, query, image, as_json))


async def _search(settings: Settings, query: str | None, image: Path | None, as_json: bool) -> None:
    async with open_runtime(settings, writes=False) as runtime:
        if image is not None:
            chosen = Options.load(settings)
            dropped = Dropped(chosen.place(settings) / "drop", chosen.max_upload_size_mb << 20)
            if not image.is_file():
                raise NotFound(f"there is no file {image}")
            await dropped.receive(image.name, image)
            path = f"search/drop/{image.name}.results"
        else:
            path = f"search/{(query or '').strip('/').removeprefix('search/').removesuffix('/@')}"
            if path.count("/") < 2:
                raise Malformed(f"{query}: text/TERMS, frame/PATH@TIME or clip/PATH@RANGE")
        found = json.loads(await _file(runtime, f"{path}/@/{JSON}"))
        while "preparing" in found:  # each look waits for a while
            found = json.loads(await _file(runtime, f"{path}/@/{JSON}"))
        status = json.loads(await _file(runtime, f"{path}/@/{STATUS}"))
    if as_json:
        print(json.dumps(found | {"status": status}, indent=1))
        return
    for row in found["results"]:
        print(f"{row['score']:.2f}  {row['tier']:<10}  {row['path']}")
    for key in ("note", "unreadable"):
        if key in status:
            print(f"reelfs: {status[key]}", file=sys.stderr)


async def _file(runtime: Runtime, path: str) -> bytes:
    return await runtime.tree.settle(await runtime.tree.resolve(path))
