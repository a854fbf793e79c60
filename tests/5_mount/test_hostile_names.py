"""Names and keys meant to lead somewhere else, or to trip: inside the mount, found again, never a crash."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

from sample_media import encode  # type: ignore[import-not-found]  # noqa: E402

from tests.bare_bucket import bare_bucket  # noqa: E402
from tests.faulty_mounts import eventually, read  # noqa: E402
from tests.servers import environ_for  # noqa: E402

MountIt = Callable[..., Any]
#: Keys that no path leads to, and under which name `.reelfs/keys/` has them (None: any).
PATHLESS = {
    "../escape.bin": "%2E.%2Fescape.bin",
    "a/../../escape.bin": None,
    "a//b.bin": None,
    "/leading.bin": None,
    "./dot.bin": None,
    "a/./b.bin": None,
    "a/..": None,
    "n" * 300: None,
    "deep/" + "é" * 150 + "/x.bin": None,
    "both": None,
    "nul\0byte.bin": None,
    "nul\0folder/x.bin": None,
}
#: Keys that look odd and are paths all the same.
ODD = (
    "-rf",
    "--help",
    "new\nline.bin",
    "tab\tback\\slash.bin",
    " leading and trailing ",
    "...",
    "..hidden",
    "@",
    "@@@",
    "x@",
    "@5s.mp4",
    "~",
    "%2e%2e%2fetc",
    "$(reboot)`;*?",
    "quote\"'.bin",
    "con:aux|nul",
    "é ü 漢 \U0001f3c8.bin",
    "e\u0301.bin",
    "\u202egpj.exe",
    "\x01\x1b[31mred.bin",
    "n" * 255,
    "both/inside.bin",
    "game@5s-9.5s.mp4",
    "game@0.3s.jpg",
    "game.mp4@/info.json",
)
#: Names asked for that are nowhere.
NOWHERE = (
    "game@.mp4",
    "game@s.mp4",
    "game@-5s.mp4",
    "game@5s-.jpg",
    "game@9s-5s.mp4",
    "game@NaN.mp4",
    "game@inf.jpg",
    "game@1e9.jpg",
    "game@99999s.jpg",
    "game@0x10.jpg",
    "game@٣s.jpg",
    "game@0.3s.exe",
    "game@0.3s..jpg",
    "game@f999999999.png",
    "game@k-1.jpg",
    "game@0.3s.jpg/below",
    "game.mp4/../../etc/passwd",
    "game.mp4@/../../escape.bin",
    "game.mp4@/nothing",
    "game@0.3s@0.3s.jpg",
    "nothing@0.3s.jpg",
    ".reelfs/../../escape.bin",
    ".reelfs/nothing",
    ".reelfs/keys/nothing",
    ".raw/../escape.bin",
    ".raw/nothing",
    "search/../../../etc/passwd",
)


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = encode(tmp_path_factory.mktemp("game") / "game.mp4", frames=30, gop=10, size=(160, 96))
    return Path(path).read_bytes()


@pytest.fixture(scope="module")
def bucket(mounting: MountIt, game: bytes) -> Iterator[Any]:
    """A mounted bucket with every key above; each holds its own name."""
    objects = {key: key.encode() for key in (*PATHLESS, *ODD)} | {"game.mp4": game}
    with bare_bucket(objects) as url:
        mount = mounting({}, source="s3://bucket", environ=environ_for(url), cache_dir="none", deadline="5s")
        yield mount
        assert mount.process.poll() is None


def walk(top: Path) -> dict[str, bytes | int]:
    """Every file below a folder, by its path there."""
    found = {}
    for folder, _, names in os.walk(top, onerror=_raise):
        for name in names:
            path = os.path.join(folder, name)
            found[os.path.relpath(path, top)] = read(path)
    return found


def _raise(error: OSError) -> None:
    raise error


def test_every_key_is_a_path_or_a_name_in_the_rescue_folder(bucket: Any, game: bytes) -> None:
    """No key is lost, none is met twice, each has its own bytes."""
    listed = walk(bucket.path)
    assert listed == {key: key.encode() for key in ODD} | {"game.mp4": game}
    rescued = walk(bucket / ".reelfs/keys")
    time.sleep(1.1)  # longer than attr_ttl: the versions of these keys are asked for
    assert walk(bucket / ".reelfs/keys") == rescued
    assert walk(bucket.path) == listed
    assert sorted(body for body in rescued.values() if isinstance(body, bytes)) == sorted(
        key.encode() for key in PATHLESS
    )
    assert all("/" not in name and len(name.encode()) <= 255 for name in rescued)

    assert {name: body for name, body in PATHLESS.items() if body is not None}.items() <= {
        body.decode(): name for name, body in rescued.items() if isinstance(body, bytes)
    }.items()
    assert walk(bucket / ".raw") == listed


def test_names_that_lead_nowhere_are_no_such_file(bucket: Any) -> None:
    """ENOENT or ENOTDIR for each; nothing outside of the mount is reached."""
    for name in NOWHERE:
        assert read(os.path.join(bucket.path, name)) in {errno.ENOENT, errno.ENOTDIR}, name


def test_names_longer_than_names_can_be(bucket: Any) -> None:
    digits = "9" * 10_000
    for name in (
        "n" * 256,
        "n" * 5000,
        f"game@{digits}s.jpg",
        f"game@5s-{digits}.mp4",
        f"game.mp4@/{digits}s.jpg",
    ):
        assert read(os.path.join(bucket.path, name)) == errno.ENAMETOOLONG, name[:40]
    assert read(bucket / f"game@{'9' * 200}s.jpg") == errno.ENOENT
    assert read(bucket / f"game@{'0' * 200}.3s.jpg") == errno.ENOENT
    assert read(os.path.join(bucket.path, *["deep"] * 1000)) in {errno.ENOENT, errno.ENAMETOOLONG}


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe.bin", b"game@\xff.jpg", b"\xed\xa0\x80", b"game.mp4\xff@/info.json"]
)
def test_names_that_are_no_utf_8(bucket: Any, raw: bytes) -> None:
    """An object store has no such key: no such file, and no question to the store that it would refuse."""
    with pytest.raises(FileNotFoundError):
        os.stat(os.fsencode(bucket.path) + b"/" + raw)


def test_random_names(bucket: Any) -> None:
    """Whatever is asked for, the answer is about the name; the mount lives."""
    chance = random.Random(17)
    alphabet = [
        *"@.-+:0123456789smfkhx/",
        "..",
        "/",
        "game",
        ".mp4",
        ".jpg",
        "@5s",
        "\n",
        "é",
        "\udcff",
        " ",
        "%2F",
    ]
    allowed = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENODATA, errno.ENAMETOOLONG}
    outside = [*walk(bucket.path)]
    for _ in range(150):
        name = "".join(chance.choices(alphabet, k=chance.randint(1, 12)))
        path = os.path.normpath(os.path.join(bucket.path, "./" + name))
        if not path.startswith(f"{bucket.path}/"):
            continue  # the kernel walked out of the mount before it asked
        with contextlib.suppress(IsADirectoryError):
            found = read(path)
            assert isinstance(found, bytes) or found in allowed, name
    assert [*walk(bucket.path)] == outside


def test_programs_get_along_with_odd_names(bucket: Any, tmp_path: Path) -> None:
    """cp -r, find and tar of everything; names come out as they went in."""
    done = subprocess.run(
        ["cp", "-r", f"{bucket.path}/.", tmp_path / "copy"], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert walk(tmp_path / "copy") == walk(bucket.path)


def test_real_keys_below_our_names_are_read_below_raw(mounting: MountIt) -> None:
    """The mount can be asked what it is doing whatever is stored, and nothing that is stored is lost."""
    objects = {key: key.encode() for key in (".reelfs/status.json", ".raw/a.bin", "b.bin")}
    with bare_bucket(objects) as url:
        mount = mounting({}, source="s3://bucket", environ=environ_for(url), cache_dir="none", deadline="5s")
        assert walk(mount / ".raw") == objects
        assert json.loads((mount / ".reelfs/status.json").read_bytes())["source"] == "s3://bucket"
        assert sorted(os.listdir(mount.path)) == [".raw", ".reelfs", "b.bin", "search"]
        told = (mount / ".reelfs/collisions").read_text().splitlines()
        assert [line.partition("\t")[0] for line in told] == [".raw", ".reelfs"]


def test_local_names_of_any_bytes(mounting: MountIt) -> None:
    """A folder may have what no bucket has: names that are no UTF-8, files that are no files."""
    mount = mounting({"plain.bin": b"plain"}, attr_ttl="0")
    source = os.fsencode(mount.settings["source"])
    names = [b"\xff\xfe", b"latin-\xe9.mp4", b"-n", b"new\nline", b"@", b"\xc3\x28", b"n" * 255]
    for name in names:
        with open(source + b"/" + name, "wb") as file:
            file.write(name)
    os.mkfifo(source + b"/pipe")
    os.symlink("/etc/passwd", source + b"/out")
    os.symlink("..", source + b"/up")
    os.symlink("loop", source + b"/loop")
    os.mkdir(source + b"/\xff-folder")
    top = os.fsencode(mount.path)
    eventually(lambda: set(names) <= set(os.listdir(top)))
    for name in names:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name
        assert os.path.lexists(top + b"/" + name)
    assert os.listdir(top + b"/\xff-folder") == []
    # Links that lead out are links: the kernel follows them for who may, reelfs reads nothing through them.
    for link in ("out", "up", "loop"):
        assert os.readlink(mount / link) == os.readlink(os.fsdecode(source) + "/" + link)
    for other in ("pipe", "loop", "up/etc/passwd", "out/x"):
        found = read(os.path.join(mount.path, other))
        assert found in {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.EISDIR, errno.EIO}, (
            other
        )
    assert read(mount / "plain.bin") == b"plain"
