"""Services, reload, watchdog, fstab and users' services under a real systemd (`tests.machine`)."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import machine
from tests.docs.doc_pages import blocks
from tests.faulty_mounts import eventually
from tests.machine import Machine
from tests.servers import ACCESS_KEY, SECRET_KEY, Server, moto_server

REASON = machine.why_not()
pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(REASON is not None, reason=str(REASON)),
    pytest.mark.timeout(180),
]

REELFS = Path(sys.executable).with_name("reelfs")
POINT = "/srv/video"
UNIT = "reelfs@video.service"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A bucket with a video in it."""
    video = tmp_path_factory.mktemp("video") / "game.mp4"
    made = ["-f", "lavfi", "-i", "testsrc2=size=160x90:rate=10:duration=4", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", *made, video], check=True)
    with moto_server() as server:
        server.fill("videos", {"a.txt": b"stored\n", "game.mp4": video.read_bytes()})
        server.fill("reel-ballers-users", {"a.txt": b"stored\n"})
        yield server


@pytest.fixture(scope="module")
def host() -> Iterator[Machine]:
    try:
        with machine.booted() as made:
            yield made
    except OSError as error:
        pytest.skip(f"no systemd in namespaces here: {error}")


@pytest.fixture(scope="module")
def keys(server: Server) -> str:
    return f"R2_ENDPOINT={server.url}\nR2_ACCESS_KEY_ID={ACCESS_KEY}\nR2_SECRET_ACCESS_KEY={SECRET_KEY}\n"


def main_pid(host: Machine, unit: str = UNIT) -> int:
    return int(host.show(unit, "MainPID"))


def mounted(host: Machine, point: str) -> int:
    """How many mounts of ours lie on a folder: two were a stale one below a new one."""
    return len(re.findall(rf" {point} .* fuse\.reelfs ", (host / "proc/1/mountinfo").read_text()))


def test_the_readme_makes_a_mount_permanent(host: Machine, keys: str) -> None:
    (block,) = [b for b in blocks(machine.ROOT / "README.md", "sh") if "test_systemd.py" in b.before]
    lines = [shlex.split(line) for line in block.body.splitlines()]
    assert len(lines) <= 3
    began = time.monotonic()
    for sudo, command, *words in lines:
        assert sudo == "sudo"
        if command == "editor":
            (host / words[0]).write_text(keys)
        else:
            host.run(command, *words)
    print(f"made permanent in {time.monotonic() - began:.1f} s")
    assert host.run("cat", f"{POINT}/a.txt").stdout == "stored\n"
    assert host.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    host.run("systemctl", "disable", "--now", UNIT)
    host.run("rm", "/etc/reelfs/video.toml", "/etc/reelfs/video.env")


def test_a_service_lives_and_dies_as_its_unit_says(host: Machine, server: Server, keys: str) -> None:
    told = host.run(
        *(REELFS, "service", "install", "video", "r2://videos", POINT),
        *("-o", "read_write=true,allow_other,write.delay=1h,dir_ttl=50s"),
    ).stdout
    assert "to do: write the keys into /etc/reelfs/video.env" in told
    assert f"to do: systemctl start {UNIT}" in told
    assert host.run("systemctl", "is-enabled", UNIT).stdout.strip() == "enabled"
    (host / "etc/reelfs/video.env").write_text(keys)

    host.run("systemctl", "start", UNIT)  # returns when the mount answers: Type=notify
    assert host.run("cat", f"{POINT}/a.txt").stdout == "stored\n"
    assert host.show(UNIT, "SubState") == "running"
    eventually(lambda: host.show(UNIT, "StatusText").startswith("online"), 10)
    assert "online" in host.run("systemctl", "status", "--no-pager", UNIT).stdout
    assert host.show(UNIT, "WatchdogTimestampMonotonic") != "0"
    assert "read-write, online" in host.run(REELFS, "status", POINT).stdout
    # Decoders work within what the unit allows, with all their own walls; others may look, as asked.
    picture = host.run("sh", "-c", f"head -c 3 {POINT}/game@2s.jpg | od -An -tx1")
    assert picture.stdout.split() == ["ff", "d8", "ff"], host.journal(UNIT)
    assert host.run("cat", f"{POINT}/a.txt", user="nobody").stdout == "stored\n"

    # Another mount beside it: each has a cache folder of its own.
    second = (REELFS, "service", "install", "second", "r2://videos", "/srv/second")
    host.run(*second, "-o", "credentials=/etc/reelfs/video.env")
    assert host.run("cat", "/srv/second/a.txt").stdout == "stored\n"
    host.run("systemctl", "disable", "--now", "reelfs@second.service")
    modes = host.run("stat", "-c", "%a", "/var/cache/reelfs/video", "/var/cache/reelfs/second")
    assert modes.stdout.split() == ["700", "700"]

    toml = host / "etc/reelfs/video.toml"
    toml.write_text(toml.read_text().replace("dir_ttl = 50", "dir_ttl = 40"))
    before = main_pid(host)
    host.run("systemctl", "reload", UNIT)  # returns when the signal is sent
    eventually(lambda: "dir_ttl = 40.0" in host.run("cat", f"{POINT}/.reelfs/config.toml").stdout, 20)
    assert main_pid(host) == before

    # What was written is sent by stopping, long before it would have been sent by itself.
    host.run("sh", "-c", f"echo kick off >{POINT}/notes.txt")
    began = time.monotonic()
    host.run("systemctl", "stop", UNIT)
    assert time.monotonic() - began < 30
    assert stored(server, "notes.txt") == b"kick off\n"
    logged = host.run("journalctl", "-o", "cat", "--no-pager", "-u", UNIT, "_COMM=reelfs").stdout
    messages = [json.loads(line)["message"] for line in logged.splitlines() if line.startswith("{")]
    assert f"{POINT}: mounted" in messages, host.journal(UNIT)
    assert not any(SECRET_KEY in message for message in messages)
    assert (host.show(UNIT, "Result"), host.show(UNIT, "ExecMainStatus")) == ("success", "0")
    assert mounted(host, POINT) == 0


def stored(server: Server, key: str) -> bytes:
    client = server.client()
    try:
        return client.get_object(Bucket="videos", Key=key)["Body"].read()
    finally:
        client.close()


@pytest.mark.slow
def test_what_was_killed_or_stands_still_is_started_anew(host: Machine) -> None:
    assert (host / "etc/reelfs/video.toml").exists(), "the test above installs it"
    # In less time than the unit's own minute; the rest of it stays as it is.
    drop_in = host / f"run/systemd/system/{UNIT}.d/quick.conf"
    drop_in.parent.mkdir(parents=True, exist_ok=True)
    drop_in.write_text("[Service]\nWatchdogSec=2\nRestartSec=100ms\n")
    user = host / "run/systemd/system/media.service"
    user.write_text("[Service]\nExecStart=/bin/sleep 1000\n")
    example = (machine.ROOT / "systemd/examples/media-server.conf").read_text().replace("/srv/video", POINT)
    (host / "run/systemd/system/media.service.d").mkdir(exist_ok=True)
    (host / "run/systemd/system/media.service.d/reelfs.conf").write_text(example)
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", UNIT)
    host.run("systemctl", "start", "media.service")
    assert host.show("media.service", "ActiveState") == "active"

    first = main_pid(host)
    host.run("kill", "-9", str(first))
    eventually(lambda: anew(host, first), 30)
    assert mounted(host, POINT) == 1
    assert host.run("cat", f"{POINT}/a.txt").stdout == "stored\n"
    assert host.show("media.service", "ActiveState") != "active"  # BindsTo: it never saw an empty folder

    second = main_pid(host)
    host.run("kill", "-STOP", str(second))  # as an event loop that stands still
    eventually(lambda: anew(host, second), 30)
    assert "Watchdog timeout" in host.journal(UNIT)
    assert mounted(host, POINT) == 1
    assert host.run("cat", f"{POINT}/a.txt").stdout == "stored\n"
    host.run("systemctl", "stop", UNIT)
    assert mounted(host, POINT) == 0


def anew(host: Machine, before: int) -> bool:
    return host.show(UNIT, "SubState") == "running" and main_pid(host) not in (0, before)


def test_fstab_and_automount(host: Machine, keys: str) -> None:
    (host / "usr/sbin/mount.reelfs").symlink_to(REELFS.with_name("mount.reelfs"))
    (host / "etc/reelfs").mkdir(exist_ok=True)
    secrets = host / "etc/reelfs/fstab.env"
    secrets.write_text(keys)
    secrets.chmod(0o600)
    (host / "srv/my video").mkdir()
    (host / "srv/auto").mkdir()
    options = "_netdev,nofail,allow_other,credentials=/etc/reelfs/fstab.env,cache_dir=none"
    (host / "etc/fstab").write_text(
        f"r2://videos /srv/my\\040video reelfs {options} 0 0\n"
        f"r2://videos /srv/auto reelfs noauto,x-systemd.automount,{options} 0 0\n"
    )
    host.run("systemctl", "daemon-reload")
    host.run("mount", "/srv/my video")
    assert host.run("cat", "/srv/my video/a.txt").stdout == "stored\n"
    host.run("umount", "/srv/my video")
    # The same as a unit, and that mounted by who looks: the examples as they are.
    (host / "etc/reelfs/video.env").write_text(keys)
    host.run("chmod", "600", "/etc/reelfs/video.env")
    for unit in ("srv-video.mount", "srv-video.automount"):
        (host / f"etc/systemd/system/{unit}").write_text(
            (machine.ROOT / f"systemd/examples/{unit}").read_text()
        )
    host.run("systemctl", "daemon-reload")
    host.run("systemctl", "start", "srv-video.mount")
    assert host.run("cat", "/srv/video/a.txt").stdout == "stored\n"
    host.run("systemctl", "stop", "srv-video.mount")
    assert mounted(host, POINT) == 0

    host.run("systemctl", "start", "srv-auto.automount")
    assert mounted(host, "/srv/auto") == 0
    assert host.run("cat", "/srv/auto/a.txt").stdout == "stored\n"  # mounted by who looks
    assert mounted(host, "/srv/auto") == 1
    host.run("systemctl", "stop", "srv-auto.automount", "srv-auto.mount")
    assert mounted(host, "/srv/auto") == 0


@pytest.mark.slow
def test_a_service_of_a_user(host: Machine) -> None:
    host.run("useradd", "--create-home", "--shell", "/bin/sh", "reel")
    host.run("systemctl", "start", "dbus.service", "systemd-logind.service")
    host.run("loginctl", "enable-linger", "reel")  # services of a user who has not logged in
    reachable = {*Path(sys.executable).resolve().parents, *Path(sys.prefix).parents}
    host.run("chmod", "a+x", *reachable)  # a Python below /root, say; of the overlay alone
    uid = host.run("id", "-u", "reel").stdout.strip()
    own = {"HOME": "/home/reel", "XDG_RUNTIME_DIR": f"/run/user/{uid}"}
    eventually(lambda: (host / f"run/user/{uid}/systemd/private").exists(), 20)

    library = host / "home/reel/library"
    library.mkdir()
    (library / "a.txt").write_text("stored\n")
    install = (REELFS, "service", "install", "--user", "video", "/home/reel/library", "/home/reel/video")
    host.run("chown", "-R", "reel:", "/home/reel")
    host.run(*install, user="reel", environ=own)
    systemctl = ("systemctl", "--user")
    shown = host.run(*systemctl, "show", UNIT, user="reel", environ=own).stdout
    assert "SubState=running" in shown, host.run("journalctl", "--no-pager", check=False).stdout
    assert host.run("cat", "/home/reel/video/a.txt", user="reel").stdout == "stored\n"
    assert host.run("cat", "/home/reel/video/a.txt", check=False).returncode != 0  # not even root
    assert (
        "read-only, online" in host.run(REELFS, "status", "/home/reel/video", user="reel", environ=own).stdout
    )
    host.run(*systemctl, "stop", UNIT, user="reel", environ=own)
    assert mounted(host, "/home/reel/video") == 0


def test_nothing_of_it_is_seen_from_here(host: Machine) -> None:
    assert "reelfs-machine" not in Path("/proc/self/mountinfo").read_text()
