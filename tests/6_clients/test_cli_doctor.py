"""`reelfs doctor` and what it looks at: each finding has its mend, and only failures fail."""

from __future__ import annotations

import email.utils
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.servers import R2, r2_server
from vfs import confine, doctor, mounts
from vfs.config import Settings, Workers

KEYS = {"R2_ACCESS_KEY_ID": "id-1", "R2_SECRET_ACCESS_KEY": "hush"}


def test_a_missing_fuse_device_is_a_failure_with_a_way_out(tmp_path: Path) -> None:
    check = doctor.device_check(tmp_path / "fuse")
    assert check.state == "fail"
    assert "modprobe fuse" in check.mend
    assert "reelfs cat" in check.mend
    (tmp_path / "fuse").touch()
    assert doctor.device_check(tmp_path / "fuse").state == "ok"


@pytest.mark.parametrize(
    ("text", "state"), [("user_allow_other\n", "ok"), ("#user_allow_other\n", "fail"), (None, "fail")]
)
def test_allow_other_needs_a_line_in_fuse_conf(tmp_path: Path, text: str | None, state: str) -> None:
    conf = tmp_path / "fuse.conf"
    if text is not None:
        conf.write_text(text)
    assert doctor.allow_other_check(conf).state == state


@pytest.mark.parametrize(
    ("environ", "state"),
    [
        (KEYS, "ok"),
        ({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}, "ok"),
        ({"R2_ACCESS_KEY_ID": "id-1"}, "fail"),
        ({"AWS_SECRET_ACCESS_KEY": "hush"}, "fail"),
        ({"AWS_PROFILE": "r2"}, "ok"),
        ({}, "warn"),
    ],
)
def test_credentials_are_looked_for_and_never_shown(
    tmp_path: Path, environ: Mapping[str, str], state: str
) -> None:
    check = doctor.credentials_check(environ, tmp_path)
    assert check.state == state
    assert "hush" not in check.text + check.mend
    assert "id-1" not in check.text + check.mend


def test_a_profile_file_counts_as_credentials(tmp_path: Path) -> None:
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "credentials").touch()
    assert doctor.credentials_check({}, tmp_path).state == "ok"


@pytest.mark.parametrize(
    ("source", "environ", "url"),
    [
        ("r2://b", {"R2_ENDPOINT": "http://e", "R2_ACCOUNT_ID": "x"}, "http://e"),
        ("r2://b", {"R2_ACCOUNT_ID": "x"}, "https://x.r2.cloudflarestorage.com"),
        ("s3://b", {"AWS_ENDPOINT_URL": "http://e"}, "http://e"),
        ("s3://b", {}, "https://s3.amazonaws.com"),
        ("r2://b", {}, None),
    ],
)
def test_the_endpoint(source: str, environ: Mapping[str, str], url: str | None) -> None:
    assert doctor.endpoint(source, environ) == url


@pytest.mark.parametrize(
    ("skew", "state"), [(0.0, "ok"), (300.0, "warn"), (-300.0, "warn"), (3600.0, "fail"), (-3600.0, "fail")]
)
def test_a_clock_that_is_off_is_said_before_signatures_fail(skew: float, state: str) -> None:
    def date_of(url: str) -> str:
        return email.utils.formatdate(time.time() - skew, usegmt=True)

    check = doctor.clock_check("http://e", date_of)
    assert check.state == state
    if state != "ok":
        assert ("ahead of" in check.text) == (skew > 0)
        assert "timedatectl" in check.mend


def test_an_endpoint_that_does_not_answer() -> None:
    def refuse(url: str) -> str:
        raise ConnectionRefusedError("refused")

    assert doctor.clock_check("http://e", refuse).state == "fail"
    assert doctor.clock_check("http://e", lambda url: None).state == "warn"
    assert doctor.clock_check("http://e", lambda url: "not a date").state == "fail"
    assert "R2_ACCOUNT_ID" in doctor.clock_check(None, refuse).mend


def test_the_cache_folder(tmp_path: Path) -> None:
    def states(folder: Path | None, size: int = 1) -> list[str]:
        return [c.state for c in doctor.cache_checks(Settings(cache_dir=folder, cache_size=size))]

    assert states(None) == ["ok"]
    assert states(tmp_path / "new" / "cache") == ["ok"]
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    assert states(mine) == ["warn", "ok"]
    mine.chmod(0o700)
    assert states(mine) == ["ok"]
    assert states(mine, 1 << 60) == ["warn"]
    (tmp_path / "file").touch()
    assert states(tmp_path / "file") == ["fail"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_cache_folder_of_another_user(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    checks = list(doctor.cache_checks(Settings(cache_dir=tmp_path)))
    assert [c.state for c in checks] == ["fail"]
    assert "another user" in checks[0].text


def test_local_sources(tmp_path: Path) -> None:
    assert doctor.source_problem(str(tmp_path)) is None
    assert doctor.source_problem(f"file://{tmp_path}") is None
    assert doctor.source_problem("s3://bucket") is None
    assert "no such folder" in str(doctor.source_problem(str(tmp_path / "gone")))
    (tmp_path / "f").touch()
    assert "is not a folder" in str(doctor.source_problem(str(tmp_path / "f")))


def test_what_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [check.state for check in doctor.decoding_checks()] == ["ok"] * 3
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho 'ImportError: libx.so' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    checks = list(doctor.decoding_checks())
    assert {(check.state, check.mend) for check in checks} == {("fail", "run `scripts/setup`")}
    assert checks[0].text == "PyAV does not work: ImportError: libx.so"


def test_how_far_decoders_are_shut_in(monkeypatch: pytest.MonkeyPatch) -> None:
    off = doctor.isolation_check(Settings(workers=Workers(isolate=False)))
    assert (off.state, off.mend) == ("warn", "switch it on")
    for abi, state in ((0, "warn"), (3, "ok")):
        monkeypatch.setattr(confine, "landlock_abi", lambda abi=abi: abi)
        check = doctor.isolation_check(Settings())
        assert check.state == state
        assert ("Landlock" in check.mend) == (state == "warn")


def test_missing_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for user, state in ((0, "warn"), (1000, "fail")):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        checks = {check.name: check for check in doctor.fuse_checks(Settings())}
        assert (checks["fuse3"].state, checks["pyfuse3"].state) == (state, "fail")
        assert "apt install fuse3" in checks["fuse3"].mend
        assert checks["pyfuse3"].mend == "run `scripts/setup`"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[R2]:
    with r2_server(tmp_path_factory.mktemp("r2")) as server:
        server.fill("bucket", {"games/a.mp4": b"x"})
        yield server


def test_the_bucket_as_a_mount_would_find_it(bucket: R2, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(source: str, **environ: str) -> tuple[str, str, str]:
        with monkeypatch.context() as patched:
            for name, value in (bucket.environ | environ).items():
                patched.setenv(name, value)
            found = doctor.bucket_check(Settings(source=source))
        return found.state, found.text, found.mend

    assert check("s3://bucket") == ("ok", "s3://bucket can be listed", "")
    assert check("s3://bucket/nothing") == ("warn", "s3://bucket/nothing is empty", "check the prefix")
    state, text, mend = check("s3://nowhere")
    assert (state, mend) == ("fail", "the text above is the store's")
    assert "no such bucket: check the name, the account and the endpoint" in text
    bucket.option(region="eu-west-1")  # found out, as a mount does
    assert check("s3://bucket")[0] == "ok"
    bucket.option(region="", token="another")
    state, text, mend = check("s3://bucket")
    assert (state, mend) == ("fail", "check the keys, and that the token may read and list this bucket")
    assert "ExpiredToken" in text
    bucket.option(token="")
    monkeypatch.setattr(doctor, "BUCKET_SECONDS", 0.5)
    state, text, mend = check("s3://bucket", AWS_ENDPOINT_URL="http://127.0.0.1:9")
    assert (state, mend) == ("fail", "check the network and the endpoint; the store may be down")


def test_the_report_names_what_fails_and_how_to_mend_it(tmp_path: Path) -> None:
    env = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [
        sys.executable,
        "-m",
        "vfs.cli",
        "doctor",
        "--json",
        str(tmp_path / "gone"),
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, capture_output=True, env=env, timeout=60, check=False)
    checks = {check["name"]: check for check in json.loads(done.stdout)}
    assert done.returncode == 1
    assert checks["source"]["state"] == "fail"
    assert (checks["mountpoint"]["state"], checks["mountpoint"]["mend"]) == (
        "fail",
        f"run `mkdir -p {tmp_path / 'm'}` first",
    )
    assert checks["decoding"]["state"] == "ok"
    assert checks["cache"]["text"] == "no disk cache is used"


MOUNTINFO = rb"""22 1 8:1 / / rw - ext4 /dev/sda1 rw
40 22 0:51 / /mnt/my\040games rw,nosuid - fuse.reelfs r2://b/p ro,user_id=0
41 22 0:52 / /mnt/other rw - fuse.sshfs host:/ rw
42 40 0:53 / /mnt/my\040games/inner rw shared:1 master:2 - tmpfs tmpfs rw
broken line
43 22 0:54 / /mnt/b\xc3\xa4r rw - fuse.reelfs /v rw
"""


@pytest.fixture
def mountinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mountinfo"
    file.write_bytes(MOUNTINFO.replace(rb"\xc3\xa4", "ä".encode()))
    real = mounts.mounts
    monkeypatch.setattr(mounts, "mounts", lambda: real(file))


@pytest.mark.usefixtures("mountinfo")
def test_which_mount_a_path_is_on() -> None:
    def source(path: str) -> str | None:
        found = mounts.mount_of(path)
        return found.source if found else None

    assert source("/mnt/my games") == "r2://b/p"
    assert source("/mnt/my games/a/b.mp4@5s.jpg") == "r2://b/p"
    assert source("/mnt/my games/inner/x") is None
    assert source("/mnt/my gamesx") is None
    assert source("/mnt/other/x") is None
    assert source("/mnt/bär/x") == "/v"
    assert source("/") is None


@pytest.mark.usefixtures("mountinfo")
def test_what_is_mounted_at_a_path() -> None:
    at = mounts.mount_at("/mnt/my games")
    assert at is not None
    assert (at.ours, at.source) == (True, "r2://b/p")
    other = mounts.mount_at("/mnt/other")
    assert other is not None
    assert not other.ours
    assert mounts.mount_at("/mnt") is None


def test_why_a_folder_cannot_be_mounted_on(tmp_path: Path) -> None:
    assert mounts.mountpoint_problem(tmp_path) is None
    (tmp_path / "x").touch()
    assert "is not empty" in str(mounts.mountpoint_problem(tmp_path))
    assert mounts.mountpoint_problem(tmp_path, nonempty=True) is None
    assert "is not a folder" in str(mounts.mountpoint_problem(tmp_path / "x"))
    assert "does not exist" in str(mounts.mountpoint_problem(tmp_path / "y"))
