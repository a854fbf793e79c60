"""A machine with a real systemd as its first process, in namespaces over this machine's own files.

No image, no network and no virtual machine: the root is an overlay of `/` (what is written there is gone at
the end), with its own processes, mounts, `/dev`, `/run` and cgroups. Only loopback is shared, so that servers
of a test can be reached. Nothing of this machine is started in it but what a test asks for.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SYSTEMD = Path("/usr/lib/systemd/systemd")
BOOT_SECONDS = 30.0
#: What it boots to: enough for services, sockets, users and mounts; no service of this machine.
TARGET = "reelfs-test.target"
#: Units that would look at hardware, or at the network.
MASKED = (
    "systemd-udevd.service",
    "systemd-udev-trigger.service",
    "systemd-sysctl.service",
    "systemd-modules-load.service",
    "systemd-remount-fs.service",
    "systemd-timesyncd.service",
    "sys-kernel-debug.mount",
    "sys-kernel-tracing.mount",
)

#: Device nodes: name, major, minor (Linux' devices.txt).
DEVICES = (
    *(("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9)),
    *(("tty", 5, 0), ("fuse", 10, 229), ("autofs", 10, 235)),
)

_BOOT = r"""
set -e
base=$1; shift
echo $$ >"$CGROUP/cgroup.procs"
exec unshare --mount --pid --fork --ipc --uts --cgroup --kill-child sh -c '
set -e
base=$1 root=$1/root
mount --make-rprivate /
mount -t tmpfs -o size=2g tmpfs "$base"
mkdir "$base/up" "$base/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$base/up,workdir=$base/work" "$root"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
mkdir "$root/dev/pts" "$root/dev/shm"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
mount -t tmpfs tmpfs "$root/dev/shm"
ln -s pts/ptmx "$root/dev/ptmx"
ln -s /proc/self/fd "$root/dev/fd"
while read -r name major minor; do mknod -m 666 "$root/dev/$name" c "$major" "$minor"; done <<LIST
$DEVICES
LIST
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
shift
for own in "$@"; do # where they lie on file systems of their own
    [ -n "$(ls -A "$root$own" 2>&-)" ] || { mkdir -p "$root$own"; mount --bind "$own" "$root$own"; }
done
: >"$root/etc/fstab"
units=$root/etc/systemd/system
mkdir -p "$units"
printf "[Unit]\nRequires=sysinit.target dbus.socket\nAfter=sysinit.target dbus.socket\n" >"$units/$TARGET"
for unit in $MASKED; do ln -sf /dev/null "$units/$unit"; done
mkdir "$root/run/old"
cd "$root"
pivot_root . run/old
cd /
umount -l /run/old
exec env -i container=reelfs PATH=/usr/sbin:/usr/bin:/sbin:/bin "$SYSTEMD" --unit="$TARGET" --show-status=no
' sh "$base" "$@"
"""


class Machine:
    """What runs. pid: of its first process, as seen from here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def __truediv__(self, path: str) -> Path:
        """A file of it, seen from here."""
        return Path(f"/proc/{self.pid}/root") / path.lstrip("/")

    def run(
        self,
        *words: str | Path,
        check: bool = True,
        user: str = "root",
        environ: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """A command in it, as `user`."""
        enter = ["nsenter", "-t", str(self.pid), "-m", "-p", "-u", "-i", "-C", "--"]
        given = {"PATH": f"{Path(sys.executable).parent}:/usr/sbin:/usr/bin:/sbin:/bin", **(environ or {})}
        become = [] if user == "root" else ["runuser", "-u", user, "--"]
        done = subprocess.run(
            [
                *enter,
                "env",
                "-i",
                "-C",
                "/",
                *(f"{k}={v}" for k, v in given.items()),
                *become,
                *map(str, words),
            ],
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if check and done.returncode:
            raise AssertionError(f"{words}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def show(self, unit: str, name: str) -> str:
        """A property of a unit."""
        return self.run("systemctl", "show", "-P", name, unit).stdout.strip()

    def journal(self, unit: str) -> str:
        """What a unit logged, for the message of a failure."""
        return self.run("journalctl", "--no-pager", "-u", unit, check=False).stdout


def why_not() -> str | None:
    """Why there can be no such machine here."""
    if os.geteuid() != 0:
        return "only root can boot a systemd in namespaces"
    for needed in (SYSTEMD, Path("/dev/fuse")):
        if not needed.exists():
            return f"{needed} is missing"
    for tool in ("unshare", "nsenter", "runuser", "pivot_root"):
        if shutil.which(tool) is None:
            return f"{tool} is not installed"
    if _cgroups() is None:
        return "no cgroup2 that could be written to"
    return None


def _cgroups() -> Path | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[fields.index("-") + 1] == "cgroup2" and os.access(fields[4], os.W_OK) and "rw" in fields[5]:
            return Path(fields[4])
    return None


@contextmanager
def booted() -> Iterator[Machine]:
    """A machine that is up; ended, with all that ran in it, when the block is left. Raises OSError."""
    cgroups = _cgroups()
    assert cgroups is not None
    cgroup = Path(tempfile.mkdtemp(prefix="reelfs-test-", dir=cgroups))
    cgroup.chmod(0o755)  # managers of users look into it
    with tempfile.TemporaryDirectory(prefix="reelfs-machine-") as base, tempfile.TemporaryFile() as said:
        environ = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CGROUP": str(cgroup),
            "DEVICES": "\n".join(f"{name} {major} {minor}" for name, major, minor in DEVICES),
            "TARGET": TARGET,
            "MASKED": " ".join(MASKED),
            "SYSTEMD": str(SYSTEMD),
        }
        own = [str(ROOT), sys.prefix]
        command = ["sh", "-c", _BOOT, "sh", base, *own]
        process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
        try:
            pid = _first(process)
            if pid is None:
                said.seek(0)
                raise OSError(f"no systemd: {said.read().decode(errors='replace')}")
            yield Machine(pid)
        finally:
            process.send_signal(signal.SIGKILL)  # --kill-child: the whole of it goes
            process.wait()
            _remove(cgroup)


def _first(process: subprocess.Popen[bytes]) -> int | None:
    """The pid of a systemd that is up; None when it ended, or takes too long."""
    until = time.monotonic() + BOOT_SECONDS
    while process.poll() is None and time.monotonic() < until:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children and Path(f"/proc/{children[0]}/comm").read_text().strip() == "systemd":
            machine = Machine(int(children[0]))
            if machine.run("systemctl", "is-active", TARGET, check=False).stdout.strip() == "active":
                return machine.pid
        time.sleep(0.05)
    return None


def _remove(cgroup: Path) -> None:
    """Empty groups go, the inner ones first; processes that are still dying are waited for."""
    until = time.monotonic() + 10
    while cgroup.exists() and time.monotonic() < until:
        for folder, _, _ in os.walk(cgroup, topdown=False):
            with suppress(OSError):
                os.rmdir(folder)
        time.sleep(0.02)
