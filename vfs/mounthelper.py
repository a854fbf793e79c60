"""`mount.reelfs SOURCE MOUNTPOINT [-o OPTIONS]`: what mount(8) and fstab call for the type `reelfs`.

Options are settings (`-o dir_ttl=5m`), beside the words that mount(8) hands to every file system. Secrets
come from the environment or from the file of `-o credentials=`, never from the command line, which everybody
sees.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from vfs.errors import ConfigError, ReelfsError

#: Exit codes of mount(8).
EX_USAGE, EX_SYSERR, EX_FAIL = 1, 2, 32


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """What mount(8) passes: `SOURCE DIR [-sfnv] [-N NAMESPACE] [-o OPTIONS] [-t TYPE.SUBTYPE]`."""
    parser = argparse.ArgumentParser("mount.reelfs", description="Mount a bucket of video.", add_help=True)
    parser.add_argument("source")
    parser.add_argument("mountpoint")
    parser.add_argument("-o", dest="options", action="append", default=[], metavar="OPTIONS")
    for flag, text in {
        "-s": "be sloppy about options (they are checked all the same)",
        "-f": "fake: check, and do not mount",
        "-n": "no mtab (there is none)",
        "-v": "say what is done",
    }.items():
        parser.add_argument(flag, dest=flag[1], action="store_true", help=text)
    parser.add_argument("-N", dest="namespace", metavar="NAMESPACE", help="not supported")
    parser.add_argument("-t", dest="type", metavar="TYPE")
    return parser.parse_args(arguments)


def run(arguments: Sequence[str]) -> None:
    """Mount; returns when the mount answers. Raises ReelfsError."""
    from vfs.config import Settings
    from vfs.mounting import check

    given = parse(arguments)
    if given.namespace:
        raise ConfigError("mount.reelfs: -N is not supported: run it inside the namespace")
    os.environ.setdefault("HOME", os.path.expanduser("~"))  # mount(8) at boot has next to no environment
    # fstab escapes a space as \040, and mount(8) undoes that.
    settings = Settings.load({"source": given.source, "mountpoint": given.mountpoint}, options=given.options)
    check(settings)
    if given.f:
        return
    if given.v:
        print(f"mount.reelfs: {settings.source} on {settings.mountpoint}", file=sys.stderr)
    from vfs.daemon import start

    start(settings.to_dict())


def main() -> None:
    """The program."""
    try:
        run(sys.argv[1:])
    except ConfigError as error:
        print(f"mount.reelfs: {error}", file=sys.stderr)
        sys.exit(EX_USAGE)
    except ReelfsError as error:
        print(f"mount.reelfs: {error}", file=sys.stderr)
        sys.exit(EX_FAIL)
    except OSError as error:
        print(f"mount.reelfs: {error}", file=sys.stderr)
        sys.exit(EX_SYSERR)


if __name__ == "__main__":
    main()
