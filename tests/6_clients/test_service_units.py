"""Units and mount.reelfs: systemd accepts them, `service install` writes them, mount(8)'s calls work."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from vfs import mounthelper, mounts, serviceunits
from vfs.config import Settings
from vfs.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
UNITS = sorted(p for p in (ROOT / "systemd").rglob("*") if p.suffix in (".service", ".mount", ".automount"))
#: systemd.exec(5): each of these gives the service file systems of its own, where a mount stays unseen.
NAMESPACES = re.compile(
    r"^(Protect(System|Home|KernelTunables|KernelModules|KernelLogs|ControlGroups|Proc)|Private\w+|"
    r"(ReadWrite|ReadOnly|Inaccessible|Exec|NoExec)Paths|Bind(ReadOnly)?Paths|TemporaryFileSystem|RootDirectory|"
    r"RootImage|DynamicUser|MountFlags|MountAPIVFS)=",
    re.MULTILINE,
)


def run(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **environ},
        timeout=60,
        check=False,
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(ROOT / "systemd")))
def test_systemd_accepts_the_unit(unit: Path, tmp_path: Path) -> None:
    name = unit.name.replace("@.", "@video.")
    made = tmp_path / name
    made.write_text(unit.read_text().replace("@reelfs@", serviceunits.program()))
    for other in unit.parent.glob(unit.stem + ".*"):  # an automount wants its mount
        if other != unit:
            shutil.copy(other, tmp_path)
    scope = ["--user"] if "user" in unit.parts else []
    done = run(
        "systemd-analyze", *scope, "--man=no", "verify", made, HOME=str(tmp_path), XDG_RUNTIME_DIR="/run"
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if name in line]) == (0, []), (
        done.stderr
    )


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_says_when_a_unit_is_wrong(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.service"
    wrong.write_text("[Service]\nType=notify\nExecStart=/does/not/exist\nMemoryMx=1G\n")
    done = run("systemd-analyze", "--man=no", "verify", wrong, HOME=str(tmp_path))
    assert "MemoryMx" in done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: str(unit.relative_to(ROOT / "systemd")))
def test_no_unit_hides_its_mount_in_a_namespace(unit: Path) -> None:
    assert NAMESPACES.findall(unit.read_text()) == []


@pytest.mark.parametrize("unit", [u for u in UNITS if u.suffix == ".service"], ids=lambda u: u.parent.name)
def test_the_commands_of_a_unit_exist(unit: Path, tmp_path: Path) -> None:
    commands = re.findall(r"^Exec\w+=-?@reelfs@ (.*)$", unit.read_text(), re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        words = [tmp_path / "none.toml" if "%i" in word else word for word in command.split()]
        done = run(sys.executable, "-m", "vfs.cli", *words, HOME=str(tmp_path))
        assert done.stderr == f"reelfs: {tmp_path}/none.toml: no such configuration file\n"


def test_install_writes_settings_unit_and_a_place_for_the_keys(tmp_path: Path) -> None:
    root = tmp_path / "root"
    command = (sys.executable, "-m", "vfs.cli", "service", "install", "--root", root)
    video = ("video", "r2://videos/u1", "/srv/my video", "-o", "dir_ttl=5m,allow_other,workers.processes=4")
    done = run(*command, *video, HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr
    toml, env = root / "etc/reelfs/video.toml", root / "etc/reelfs/video.env"
    settings = Settings.load(config=toml, environ={})
    assert (settings.source, str(settings.mountpoint)) == ("r2://videos/u1", "/srv/my video")
    assert (settings.dir_ttl, settings.allow_other, settings.workers.processes) == (300.0, True, 4)
    assert str(settings.credentials) == "/etc/reelfs/video.env"
    assert str(settings.cache_dir) == "/var/cache/reelfs/video"
    assert stat.S_IMODE(env.stat().st_mode) == 0o600
    assert (root / "srv/my video").is_dir()
    unit = (root / "etc/systemd/system/reelfs@.service").read_text()
    assert "@reelfs@" not in unit
    assert f"ExecStart={serviceunits.program()} mount --foreground" in unit
    assert f"to do: write the keys into {env}" in done.stdout
    again = run(*command, *video, HOME=str(tmp_path))
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr
    assert run(*command, "--replace", *video, HOME=str(tmp_path)).returncode == 0


def test_install_for_one_user(tmp_path: Path) -> None:
    layout = serviceunits.Layout.of_user(tmp_path, {"XDG_CONFIG_HOME": "/home/u/.config"})
    settings = Settings.load({"source": "/srv/library", "mountpoint": "/home/u/video"}, environ={})
    done = serviceunits.install("video", settings, layout)
    assert [path.relative_to(tmp_path) for path in done.files] == [
        Path("home/u/.config/reelfs/video.toml"),
        Path("home/u/.config/systemd/user/reelfs@.service"),
    ]
    assert "NoNewPrivileges=yes" not in done.files[1].read_text()
    assert done.todo[-1] == "systemctl --user enable --now reelfs@video.service"


@pytest.mark.parametrize("name", ["", "a b", "../x", "@", "a/b", "x" * 65])
def test_a_name_that_is_none_of_a_unit_is_refused(name: str, tmp_path: Path) -> None:
    settings = Settings.load({"source": "/srv/library", "mountpoint": "/srv/video"}, environ={})
    with pytest.raises(ConfigError, match="cannot be the name"):
        serviceunits.install(name, settings, serviceunits.Layout.of_system(tmp_path))


@pytest.mark.fuse
def test_mount_reelfs_as_mount_calls_it(tmp_path: Path) -> None:
    library, point = tmp_path / "library", tmp_path / "my mount"
    library.mkdir()
    point.mkdir()
    (library / "a.txt").write_bytes(b"stored\n")
    helper = shutil.which("mount.reelfs", path=str(Path(sys.executable).parent)) or ""
    words = "rw,_netdev,nofail,x-systemd.automount,noatime,dir_ttl=5m,umask=027"
    fake = run(helper, library, point, "-f", "-o", words, HOME=str(tmp_path))
    assert (fake.returncode, mounts.mount_at(point)) == (0, None)
    done = run(helper, library, point, "-v", "-o", words, HOME=str(tmp_path))
    try:
        assert done.returncode == 0, done.stderr
        assert (point / "a.txt").read_bytes() == b"stored\n"
        assert (point / "a.txt").stat().st_mode & 0o777 == 0o440
    finally:
        mounts.unmount(point, lazy=True)


@pytest.mark.fuse
def test_a_unit_clears_a_dead_mount_and_touches_no_other(tmp_path: Path) -> None:
    """`umount --dead`, which each start of a service begins with."""
    library, point = tmp_path / "library", tmp_path / "mnt"
    library.mkdir()
    point.mkdir()
    reelfs = (sys.executable, "-m", "vfs.cli")
    clear = (*reelfs, "umount", "--dead", "--lazy", point)
    environ = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    assert (run(*clear, **environ).returncode, run(*clear, **environ).stderr) == (0, "")  # nothing there
    try:
        assert run(*reelfs, "mount", library, point, **environ).returncode == 0
        pid = json.loads(run(*reelfs, "status", point, "--json", **environ).stdout)["pid"]
        assert run(*clear, **environ).returncode == 0
        assert mounts.mount_at(point) is not None  # it lives
        os.kill(pid, signal.SIGKILL)
        mounts.ended(pid)
        assert mounts.is_dead(point)
        assert run(*clear, **environ).returncode == 0
        assert mounts.mount_at(point) is None
    finally:
        if mounts.mount_at(point) is not None:
            mounts.unmount(point, lazy=True)


def test_mount_reelfs_refuses_with_the_codes_of_mount(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        [str(tmp_path), "/nowhere"],
        [str(tmp_path), "/", "-o", "dir_til=3"],
        ["a", "b", "-N", "x"],
    ):
        with pytest.raises(ConfigError):
            mounthelper.run(words)
    done = run(sys.executable, "-m", "vfs.mounthelper", tmp_path, "/nowhere", HOME=str(tmp_path))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_credentials_have_no_place_on_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="secret_access_key"):
        mounthelper.run(["r2://videos", str(tmp_path), "-o", "secret_access_key=x"])
    open_to_all = tmp_path / "keys"
    open_to_all.write_text("R2_ACCESS_KEY_ID=a\n")
    open_to_all.chmod(0o644)
    (tmp_path / "m").mkdir()
    done = run(
        *(sys.executable, "-m", "vfs.cli", "ls", "r2://videos", "/", "-o", f"credentials={open_to_all}"),
        HOME=str(tmp_path),
    )
    assert (done.returncode, done.stderr) == (
        2,
        f"reelfs: credentials: others may read {open_to_all}: `chmod 600 {open_to_all}`\n",
    )
