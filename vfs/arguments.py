"""Options that several commands of the command line take, plugins' among them."""

from __future__ import annotations

from typing import Annotated

import typer

#: `--config FILE` and `-o KEY=VALUE`: what `Settings.load` takes as `config` and `options`.
ConfigOption = Annotated[
    str | None, typer.Option("--config", metavar="FILE", help="Configuration file (TOML).")
]
SettingOptions = Annotated[
    list[str] | None,
    typer.Option("-o", metavar="KEY=VALUE,...", help="Any setting, by its name in the configuration file."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
