"""`reelfs doctor`: what a mount needs, looked at one by one, each with its mend."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vfs.errors import Denied, NotFound, ReelfsError, Unavailable
from vfs.mounts import mount_at, mountpoint_problem
from vfs.storage.credentials import environment
from vfs.units import format_size, human_size

if TYPE_CHECKING:
    from vfs.config import Settings

#: Signatures are refused when the clocks differ by 15 minutes (S3: RequestTimeTooSkewed); said earlier.
CLOCK_WARNING = 60.0
CLOCK_LIMIT = 15 * 60.0
#: What the first request of a mount gets, too.
BUCKET_SECONDS = 6.0

INSTALL_FUSE = "install it: `apt install fuse3`, `dnf install fuse3` or `pacman -S fuse3`"
NO_MOUNT = "or read without a mount: `reelfs cat SOURCE PATH`"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing looked at; mend says what to do when it is not ok."""

    name: str
    state: Literal["ok", "warn", "fail"]
    text: str
    mend: str = ""


def examine(settings: Settings) -> list[Check]:
    """All checks that fit what the settings name."""
    checks = [
        *fuse_checks(settings),
        *decoding_checks(),
        isolation_check(settings),
        *cache_checks(settings),
    ]
    if settings.mountpoint is not None:
        checks.append(mountpoint_check(settings))
    if settings.source:
        checks += source_checks(settings)
    return checks


def fuse_checks(settings: Settings) -> Iterator[Check]:
    """FUSE: the device, the helper, the permission to let others in."""
    yield device_check(Path("/dev/fuse"))
    if shutil.which("fusermount3"):
        yield Check("fuse3", "ok", "fusermount3 is installed")
    else:
        state: Literal["warn", "fail"] = "warn" if os.geteuid() == 0 else "fail"
        yield Check("fuse3", state, "fusermount3 is not installed", INSTALL_FUSE)
    if importlib.util.find_spec("pyfuse3") is None:
        yield Check("pyfuse3", "fail", "pyfuse3 is not installed", "run `scripts/setup`")
    if settings.allow_other and os.geteuid() != 0:
        yield allow_other_check(Path("/etc/fuse.conf"))


def device_check(device: Path) -> Check:
    """The device every FUSE mount is opened through."""
    if not device.exists():
        mend = f"run `modprobe fuse`; in a container add `--device /dev/fuse --cap-add SYS_ADMIN`; {NO_MOUNT}"
        return Check("device", "fail", f"{device} does not exist", mend)
    if not os.access(device, os.R_OK | os.W_OK):
        mend = f"add yourself to the group that owns it (`ls -l {device}`), or use sudo; {NO_MOUNT}"
        return Check("device", "fail", f"{device} may not be opened by this user", mend)
    return Check("device", "ok", f"{device} is there and may be opened")


def allow_other_check(conf: Path) -> Check:
    """A user other than root may pass allow_other only where fuse.conf says so."""
    try:
        lines = conf.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    if any(line.strip() == "user_allow_other" for line in lines):
        return Check("allow_other", "ok", f"{conf} has user_allow_other")
    return Check(
        "allow_other",
        "fail",
        f"{conf} does not allow allow_other",
        f"add the line `user_allow_other` to {conf}",
    )


def mountpoint_check(settings: Settings) -> Check:
    """The folder to mount on: a mount of ours that answers is fine too."""
    path = settings.mountpoint
    assert path is not None
    mounted = mount_at(path)
    problem = mountpoint_problem(path, nonempty=settings.nonempty)
    if problem is None:
        return Check("mountpoint", "ok", f"{path} can be mounted on")
    if mounted is not None and mounted.ours and "dead" not in problem:
        return Check("mountpoint", "ok", f"{path}: {mounted.source} is mounted there and answers")
    return Check("mountpoint", "fail", *_cut(problem))


def _cut(problem: str) -> tuple[str, str]:
    text, _, mend = problem.partition(": ")
    return text, mend


def decoding_checks() -> Iterator[Check]:
    """What the decoding processes import, tried as they do: in another process."""
    for name, module in (("PyAV", "av"), ("Pillow", "PIL"), ("numpy", "numpy")):
        code = f"import {module}; print({module}.__version__)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            yield Check("decoding", "ok", f"{name} {done.stdout.strip()}")
        else:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            yield Check("decoding", "fail", f"{name} does not work: {reason}", "run `scripts/setup`")


def isolation_check(settings: Settings) -> Check:
    """What the processes that decode can give up on this kernel."""
    from vfs.confine import landlock_abi

    if not settings.workers.isolate:
        return Check(
            "isolation", "warn", "workers.isolate is off: decoders have files and network", "switch it on"
        )
    if landlock_abi() == 0:
        mend = "use a kernel with Landlock (5.13 or newer, `lsm=landlock`)"
        return Check("isolation", "warn", "this kernel has no Landlock: decoders can read files", mend)
    return Check("isolation", "ok", "decoders have no files, network or programs")


def cache_checks(settings: Settings) -> Iterator[Check]:
    """The folder of the disk cache: ours, writable, with room."""
    folder = settings.cache_dir
    if folder is None:
        yield Check("cache", "ok", "no disk cache is used")
        return
    existing = next((p for p in (folder, *folder.parents) if p.exists()), Path("/"))
    if not os.access(existing, os.W_OK | os.X_OK) or not existing.is_dir():
        yield Check("cache", "fail", f"{existing} is not writable", "choose another with --cache-dir")
        return
    status = existing.stat()
    if existing == folder and status.st_uid != os.geteuid():
        yield Check(
            "cache",
            "fail",
            f"{folder} belongs to another user",
            "`chown` it, or choose another with --cache-dir",
        )
        return
    if existing == folder and status.st_mode & 0o077:
        yield Check("cache", "warn", f"{folder} is open to other users", f"`chmod 700 {folder}`")
    free = shutil.disk_usage(existing).free
    if free < settings.cache_size:
        text = f"{human_size(free)} free for a cache of {format_size(settings.cache_size)}"
        yield Check("cache", "warn", f"{existing}: {text}", "give --cache-size what there is room for")
    else:
        yield Check("cache", "ok", f"{existing}: {human_size(free)} free")


def source_problem(source: str) -> str | None:
    """Why a local source cannot be mounted, as far as that is known without opening it."""
    path = source.removeprefix("file://")
    if "://" in path:
        return None
    if not os.path.isdir(path):
        return f"{path} is not a folder" if os.path.exists(path) else f"{path}: no such folder"
    return None if os.access(path, os.R_OK | os.X_OK) else f"{path} may not be read by this user"


def source_checks(settings: Settings) -> Iterator[Check]:
    """Credentials, clock and bucket of a remote source; a local one has to be there."""
    if settings.is_local:
        problem = source_problem(settings.source)
        yield (
            Check("source", "fail", problem)
            if problem
            else Check("source", "ok", f"{settings.source} can be read")
        )
        return
    if settings.source.startswith(("s3://", "r2://")):
        environ = environment(settings.credentials)
        yield credentials_check(environ, Path.home())
        yield clock_check(endpoint(settings.source, environ), _date_of)
    yield bucket_check(settings)


def credentials_check(environ: Mapping[str, str], home: Path) -> Check:
    """Whether there are keys at all; whether they are right, only the bucket can say. Shows none of them."""
    for names in (
        ("R2_ACCESS_KEY_ID", "R2_SECRET_ACCESS_KEY"),
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
    ):
        given = [name for name in names if environ.get(name)]
        if len(given) == 2:
            return Check("credentials", "ok", f"from {names[0]} and {names[1]}")
        if given:
            other = next(name for name in names if name not in given)
            return Check("credentials", "fail", f"{given[0]} is set, {other} is not", f"set {other} too")
    if environ.get("AWS_PROFILE") or (home / ".aws" / "credentials").exists():
        return Check("credentials", "ok", f"from the AWS profile {environ.get('AWS_PROFILE') or 'default'}")
    return Check(
        "credentials",
        "warn",
        "none in the environment and no AWS profile",
        "set R2_ACCESS_KEY_ID and R2_SECRET_ACCESS_KEY (an R2 API token gives both)",
    )


def endpoint(source: str, environ: Mapping[str, str]) -> str | None:
    """Where the S3 API of a source is, in the store's order; None = the account is not named."""
    for name in ("R2_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if environ.get(name):
            return environ[name]
        if name == "R2_ENDPOINT" and environ.get("R2_ACCOUNT_ID"):
            return f"https://{environ['R2_ACCOUNT_ID']}.r2.cloudflarestorage.com"
    return None if source.startswith("r2://") else "https://s3.amazonaws.com"


def clock_check(url: str | None, date_of: Callable[[str], str | None]) -> Check:
    """Our clock against the store's: a request is signed with the time."""
    if url is None:
        return Check("endpoint", "fail", "no endpoint", "set R2_ACCOUNT_ID, or R2_ENDPOINT to the whole URL")
    try:
        before = time.time()
        date = date_of(url)
        middle = (before + time.time()) / 2
        skew = middle - parsedate_to_datetime(date).timestamp() if date else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        return Check(
            "endpoint", "fail", f"{url} cannot be reached: {reason}", "check the network and the endpoint"
        )
    if skew is None:
        return Check("clock", "warn", f"{url} answers, without saying what time it is", "check `timedatectl`")
    text = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} {url}"
    if abs(skew) < CLOCK_WARNING:
        return Check("clock", "ok", f"within a minute of {url}")
    state: Literal["warn", "fail"] = "warn" if abs(skew) < CLOCK_LIMIT else "fail"
    return Check("clock", state, text, "set the clock: `timedatectl set-ntp true`")


def _date_of(url: str) -> str | None:
    """The `Date` header of any answer, refusals included."""
    import urllib.error
    import urllib.request

    request = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as refusal:
        with refusal:
            date = refusal.headers.get("Date")
    return str(date) if date else None


def bucket_check(settings: Settings) -> Check:
    """One listing of one key: reachable, and allowed."""
    import trio

    from vfs.plugins import load_plugins
    from vfs.storage.guard import GuardedStore

    async def ask() -> int:
        store = GuardedStore(
            load_plugins(settings.plugins.block).store(settings.source, settings),
            deadline=min(settings.deadline, BUCKET_SECONDS),
        )
        try:
            page = await store.list(limit=1)
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()
        return len(page.objects) + len(page.prefixes)

    try:
        found = trio.run(ask)
    except ReelfsError as error:
        return Check("bucket", "fail", f"{settings.source}: {error}", _bucket_mend(error))
    if not found:
        return Check("bucket", "warn", f"{settings.source} is empty", "check the prefix")
    return Check("bucket", "ok", f"{settings.source} can be listed")


def _bucket_mend(error: Exception) -> str:
    if isinstance(error, Denied):
        return "check the keys, and that the token may read and list this bucket"
    if isinstance(error, NotFound):
        return "check the name of the bucket and the account"
    if isinstance(error, Unavailable):
        return "check the network and the endpoint; the store may be down"
    return "the text above is the store's"
