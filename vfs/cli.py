"""The command line: `reelfs mount`, `umount`, `ls`, `stat`, `cat`, `explain`, `put`, `get`, `doctor`, ...

Errors are one line on stderr that says what to do, and a non-zero exit: 2 for usage and configuration, 3
for a conflict that left two files, 1 for everything else; `REELFS_DEBUG=1` shows the traceback. What a
command does not need is not imported: a mount has to answer 1.5 seconds after it was asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer
import typer.core

from vfs import cli_mounts, cli_plugin, cli_service, cli_transfer
from vfs.arguments import ConfigOption, JsonOption, SettingOptions
from vfs.errors import ConfigError, ReelfsError
from vfs.terminal import (
    EXIT_BROKEN_PIPE,
    EXIT_INTERRUPTED,
    NobodyReads,
    explained,
    log_to_stderr,
    only,
    print_json,
    print_line,
    print_table,
    write_all,
)

T = TypeVar("T")

if TYPE_CHECKING:
    from vfs.config import Settings
    from vfs.paths import Entry, Files


#: The variable by which a shell asks for completions (typer's convention).
_COMPLETE = "_REELFS_COMPLETE"


class _Commands(typer.core.TyperGroup):
    """Our own commands; `index` and those of plugins are looked for when a name is none of these."""

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, or None."""
        return super().get_command(ctx, cmd_name) or _late_commands().get(cmd_name)

    def list_commands(self, ctx: Any) -> list[str]:
        """All names, ours first; a broken configuration must not take the help away."""
        try:
            added = list(_late_commands())
        except ReelfsError:
            added = []
        return [*super().list_commands(ctx), *added]


def _late_commands() -> Mapping[str, Any]:
    from vfs import indexing
    from vfs.config import Settings
    from vfs.hookspecs import Command
    from vfs.plugins import load_plugins

    made = {}
    ours = Command("index", indexing.index)
    for command in (ours, *load_plugins(Settings.load().plugins.block).commands()):
        if isinstance(command.run, typer.Typer):
            made[command.name] = typer.main.get_command(command.run)
            continue
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(command.name)(command.run)
        made[command.name] = typer.main.get_command(single)
    return made


app = typer.Typer(
    cls=_Commands,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich costs a tenth of a second at each start, for boxes around help
    help="Mount a bucket of video as a local tree; clips and frames are made on read.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"reelfs {version('reelfs')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


First = Annotated[str, typer.Argument(metavar="PATH|SOURCE", help="A path on a mount, or a source.")]
Second = Annotated[
    str | None, typer.Argument(metavar="[PATH]", help="A path in SOURCE, which need not be mounted.")
]
Flag = bool | None
Text = str | None


@app.command()
def mount(
    source: Annotated[
        Text, typer.Argument(metavar="SOURCE", help="A folder, s3://BUCKET/PREFIX or r2://BUCKET/PREFIX.")
    ] = None,
    mountpoint: Annotated[
        Text, typer.Argument(metavar="MOUNTPOINT", help="The empty folder to mount on.")
    ] = None,
    config: ConfigOption = None,
    cache_dir: Annotated[
        Text, typer.Option(metavar="DIR", help="Folder of the disk cache; none = no disk cache.")
    ] = None,
    cache_size: Annotated[
        Text, typer.Option(metavar="SIZE", help="Size of the disk cache, as 10GiB.")
    ] = None,
    memory: Annotated[Text, typer.Option(metavar="SIZE", help="Memory for cached data, as 256MiB.")] = None,
    foreground: Annotated[Flag, typer.Option("--foreground", "-f", help="Stay in the foreground.")] = None,
    read_write: Annotated[
        Flag, typer.Option("--read-write/--read-only", help="Allow writing, or not (the default).")
    ] = None,
    allow_other: Annotated[Flag, typer.Option("--allow-other", help="Let other users in.")] = None,
    uid: Annotated[Text, typer.Option(metavar="N", help="Owner of all files, a number.")] = None,
    gid: Annotated[Text, typer.Option(metavar="N", help="Group of all files, a number.")] = None,
    umask: Annotated[Text, typer.Option(metavar="OCTAL", help="Permission bits to take away, octal.")] = None,
    show_derived: Annotated[
        Flag, typer.Option("--show-derived", help="List the folders `FILE@/` of what can be derived.")
    ] = None,
    log_level: Annotated[Text, typer.Option(metavar="LEVEL", help="debug, info, warning or error.")] = None,
    log_file: Annotated[Text, typer.Option(metavar="FILE", help="Log to this file.")] = None,
    options: SettingOptions = None,
) -> None:
    """Mount SOURCE on MOUNTPOINT; returns when the mount answers."""
    given = {name: value for name, value in locals().items() if name not in ("config", "options")}
    settings = _settings(given, options, config)
    _complete(settings)
    from vfs.mounting import check

    check(settings)  # before the import below, which fails where FUSE is not installed
    from vfs.daemon import start

    start(settings.to_dict(), settings.foreground)
    if settings.writes and not settings.foreground:
        from vfs.cli_mounts import say_what_was_found

        say_what_was_found(str(settings.mountpoint))


def _complete(settings: Settings) -> None:
    """Raises ConfigError where the command line lacks what to mount, or where."""
    if not settings.source or settings.mountpoint is None:
        missing = "MOUNTPOINT" if settings.source else "SOURCE"
        raise ConfigError(f"{missing} is missing: reelfs mount SOURCE MOUNTPOINT")


def _settings(
    flags: Mapping[str, object], options: list[str] | None = None, config: str | None = None
) -> Settings:
    from vfs.config import Settings

    return Settings.load(flags, options=options or (), config=config)


@app.command()
def umount(
    mountpoint: Annotated[Text, typer.Argument(metavar="MOUNTPOINT", help="Where it is mounted.")] = None,
    lazy: Annotated[
        bool, typer.Option("--lazy", help="Detach now, even if it is in use; it ends with its last user.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for what is not sent: the next mount sends it.")
    ] = False,
    dead: Annotated[
        bool, typer.Option("--dead", help="Only a mount whose daemon is gone; nothing where there is none.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Unmount, when everything written is in the store; works on dead mounts too. With --config, what that
    file mounts."""
    from vfs.mounts import is_dead

    point = cli_mounts.mountpoint_of(mountpoint, config)
    if not dead or is_dead(point):
        cli_mounts.leave(point, lazy=lazy, now=now)


@app.command()
def ls(
    first: First,
    path: Second = None,
    long: Annotated[bool, typer.Option("--long", "-l", help="Sizes and dates too.")] = False,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    options: SettingOptions = None,
) -> None:
    """List a folder, mounted or not."""

    async def run(files: Files, where: str) -> None:
        entries = await files.list(where)
        if as_json:
            print_json([entry.to_dict() for entry in entries])
            return
        for entry in entries:
            print_line(_long_line(entry) if long else entry.name + ("/" if entry.kind == "folder" else ""))

    _with_files(run, first, path, options, config)


def _long_line(entry: Entry) -> str:
    return f"{entry.kind:<6} {_size(entry):>14} {_time(entry):>16}  {entry.name}"


def _size(entry: Entry) -> str:
    return "?" if entry.size is None else "-" if entry.kind == "folder" else str(entry.size)


def _time(entry: Entry) -> str:
    import time

    return time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime)) if entry.mtime else "-"


@app.command()
def stat(
    first: First,
    path: Second = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    options: SettingOptions = None,
) -> None:
    """Show size, time, version and attributes of a path."""

    async def run(files: Files, where: str) -> None:
        entry = await files.stat(where)
        if as_json:
            print_json(entry.to_dict())
            return
        rows = {"name": entry.name, "kind": entry.kind, "size": _size(entry), "mtime": _time(entry)}
        rows |= {f"user.reelfs.{name}": value for name, value in sorted(entry.attributes.items())}
        width = max(map(len, rows))
        for name, value in rows.items():
            print_line(f"{name:<{width}} {value}")

    _with_files(run, first, path, options, config)


@app.command()
def cat(
    first: First, path: Second = None, config: ConfigOption = None, options: SettingOptions = None
) -> None:
    """Write a file to stdout, mounted or not."""

    async def run(files: Files, where: str) -> None:
        import trio

        async for chunk in files.chunks(where):
            await trio.to_thread.run_sync(write_all, chunk)

    _with_files(run, first, path, options, config)


@app.command()
def explain(
    first: First,
    path: Second = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    options: SettingOptions = None,
) -> None:
    """Say what reading a path will fetch and cost, before anything of it is read."""

    async def run(files: Files, where: str) -> None:
        text = await files.explain(where)
        if as_json:
            from vfs.explain import parse

            print_json(parse(text))
        else:
            print_line(text.rstrip("\n"))

    _with_files(run, first, path, options, config)


@app.command()
def plugins(as_json: JsonOption = False, config: ConfigOption = None, options: SettingOptions = None) -> None:
    """List the plugins and what became of them."""
    from dataclasses import asdict

    from vfs.plugins import load_plugins

    rows = [asdict(info) for info in load_plugins(_settings({}, options, config).plugins.block).infos]
    if as_json:
        print_json(rows)
    else:
        print_table(["name", "version", "distribution", "module", "state"], rows)


@app.command()
def doctor(
    source: Annotated[Text, typer.Argument(metavar="[SOURCE]", help="Check this source too.")] = None,
    mountpoint: Annotated[
        Text, typer.Argument(metavar="[MOUNTPOINT]", help="Check this mountpoint too.")
    ] = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    options: SettingOptions = None,
) -> None:
    """Check what a mount needs, and say how to mend what is missing."""
    from dataclasses import asdict

    from vfs.doctor import examine

    settings = _settings({"source": source, "mountpoint": mountpoint}, options, config)
    checks = examine(settings)
    if as_json:
        print_json([asdict(check) for check in checks])
    else:
        for check in checks:
            print_line(f"{check.state:<5} {check.name:<12} {check.text}")
            if check.mend and check.state != "ok":
                print_line(f"{'':<18} -> {check.mend}")
    raise typer.Exit(1 if any(check.state == "fail" for check in checks) else 0)


cli_transfer.register(app)
cli_mounts.register(app)
app.add_typer(cli_service.service)
app.add_typer(cli_plugin.plugin)


@app.command()
def completion(
    shell: Annotated[str, typer.Argument(metavar="SHELL", help="bash, zsh or fish.")],
) -> None:
    """Print what makes a shell complete commands: `source <(reelfs completion bash)`."""
    from typer._completion_shared import get_completion_script

    if shell not in ("bash", "zsh", "fish"):
        raise ConfigError(f"{shell!r} is none of bash, zsh and fish")
    print_line(get_completion_script(prog_name="reelfs", complete_var=_COMPLETE, shell=shell).rstrip("\n"))


# -- running and printing -----------------------------------------------------------------------------------


def _with_files(
    run: Callable[[Files, str], Awaitable[None]],
    first: str,
    second: str | None,
    options: list[str] | None,
    config: str | None,
) -> None:
    """`run` with the files that `PATH` or `SOURCE PATH` names."""
    import trio

    from vfs.doctor import source_problem
    from vfs.paths import open_files, target

    source, path = target(first, second)
    settings = None
    if source is not None:
        # A mount may hold the lock of the user's disk cache; one read is not worth a second cache.
        settings = _settings({"source": source}, ["cache_dir=none", *(options or ())], config)
        if (problem := source_problem(settings.source)) is not None:
            raise ReelfsError(problem)

    async def session() -> None:
        async with open_files(settings) as files:
            await run(files, path)

    try:
        trio.run(session)
    except BaseException as error:
        cause = only(error)
        if source is None and isinstance(cause, OSError):
            _fail_on_mount(cause, path)
        raise cause from None


def _fail_on_mount(error: OSError, path: str) -> NoReturn:
    """The kernel hands on a number; what the daemon reported about the path says why."""
    from vfs.paths import failure_notes, os_error_text

    raise ReelfsError("\n  ".join([os_error_text(error, path), *failure_notes(path)])) from None


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command line; never returns."""
    sys.exit(_run(sys.argv[1:] if arguments is None else arguments))


def _run(arguments: list[str]) -> int:
    """The exit code of a command line."""
    if _COMPLETE in os.environ:  # a shell asks what could come next
        import typer.completion

        vars(typer.completion)["completion_init"]()
    if arguments[:1] != ["mount"]:  # the daemon has a log of its own
        log_to_stderr()
    try:
        return app(arguments or ["--help"], prog_name="reelfs", standalone_mode=False) or 0
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except NobodyReads:
        return EXIT_BROKEN_PIPE
    except Exception as error:
        if os.environ.get("REELFS_DEBUG"):
            raise
        text, code = explained(error)
        print(f"reelfs: {text}", file=sys.stderr)
        return code


if __name__ == "__main__":
    main()
