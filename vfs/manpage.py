"""Manual pages made from the command line itself: `python -m vfs.manpage DIR` writes them.

reelfs(1) has every command with its arguments and options; mount.reelfs(8) what fstab needs. The troff is
that of man(7).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfs.config import Settings

_BUGS = "The pages of the documentation say more: quickstart, paths, semantics, operations, security."


def escaped(text: str) -> str:
    """Text as troff takes it: backslashes, dashes of options, and no line that begins as a request."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[:1] in ".'" else line for line in text.splitlines())


def reelfs_page() -> str:
    """reelfs(1)."""
    import typer.main

    from vfs.cli import app

    group: Any = typer.main.get_command(app)
    lines = [
        '.TH REELFS 1 "" "reelfs" "User Commands"',
        ".SH NAME",
        "reelfs \\- mount a bucket of video as a local tree; clips and frames are made on read",
        ".SH SYNOPSIS",
        ".B reelfs",
        ".I COMMAND",
        "[OPTIONS] [ARGUMENTS]",
        ".SH COMMANDS",
    ]
    for name in sorted(group.commands):
        lines += _command(f"reelfs {name}", group.commands[name])
    lines += [".SH SETTINGS", "Given with \\-o, in the environment, or in the configuration file."]
    lines += _settings()
    lines += [
        ".SH FILES",
        ".TP",
        ".I ~/.config/reelfs/config.toml",
        "settings",
        ".TP",
        ".I /etc/reelfs/NAME.toml, /etc/reelfs/NAME.env",
        "settings and secrets of the service reelfs@NAME",
        ".SH EXIT STATUS",
        "0 done, 1 failed, 2 wrong usage or settings, 130 interrupted.",
        ".SH SEE ALSO",
        ".BR mount.reelfs (8),",
        ".BR systemctl (1)",
        ".PP",
        escaped(_BUGS),
    ]
    return "\n".join(lines) + "\n"


def _command(name: str, command: Any) -> Iterator[str]:
    inner = getattr(command, "commands", None)
    if inner:
        for below in sorted(inner):
            yield from _command(f"{name} {below}", inner[below])
        return
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    words = " ".join(str(p.metavar or p.name.upper()) for p in arguments)
    yield ".SS " + escaped(f"{name} {words}".strip())
    yield escaped((command.help or "").strip().replace("\n", " "))
    for parameter in options:
        if parameter.name == "help":
            continue
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
        value = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
        yield ".TP"
        yield f"\\fB{escaped(names)}\\fR{escaped(value)}"
        yield escaped(parameter.help or "")


def _settings() -> Iterator[str]:
    for option in Settings.describe():
        yield ".TP"
        default = f" (default {option.default_text})" if option.default_text else ""
        yield f"\\fB{escaped(option.key)}\\fR"
        yield escaped(f"{option.help}{default}")


def mount_page() -> str:
    """mount.reelfs(8)."""
    return "\n".join(
        [
            '.TH MOUNT.REELFS 8 "" "reelfs" "System Administration"',
            ".SH NAME",
            "mount.reelfs \\- mount a bucket of video; what mount(8) calls for the type reelfs",
            ".SH SYNOPSIS",
            ".B mount.reelfs",
            ".I SOURCE MOUNTPOINT",
            "[\\-sfnv] [\\-o OPTIONS]",
            ".SH OPTIONS",
            "Settings of",
            ".BR reelfs (1),",
            "as in \\fBdir_ttl=5m,allow_other\\fR, beside the words that mount(8) gives to",
            "every file system.",
            "Secrets come from the environment or the file of \\fBcredentials=FILE\\fR, never from here.",
            ".TP",
            "\\fB\\-f\\fR",
            "check, and do not mount",
            ".TP",
            "\\fB\\-v\\fR",
            "say what is done",
            ".SH EXAMPLE",
            "In /etc/fstab:",
            ".PP",
            ".nf",
            escaped(
                "r2://videos  /srv/video  reelfs  "
                "_netdev,nofail,allow_other,credentials=/etc/reelfs/video.env  0 0"
            ),
            ".fi",
            ".SH EXIT STATUS",
            "0 mounted, 1 wrong usage or settings, 2 a system error, 32 the mount failed.",
            ".SH SEE ALSO",
            ".BR reelfs (1),",
            ".BR fstab (5)",
            "",
        ]
    )


def write(folder: Path) -> None:
    """Both pages below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "reelfs.1").write_text(reelfs_page())
    (folder / "mount.reelfs.8").write_text(mount_page())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
