"""Searching as an enemy would, on a real mount: an error for that question alone, and the next one works."""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from client_mounts import Mount, mounted, reelfs
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "4_plugins"))

from search_media import make, scene

pytestmark = pytest.mark.fuse

MIB = 1 << 20
#: What the daemon may say of what is wrong with a file.
EXPECTED = (r"search/drop/[\w.-]+\.results",)


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mount]:
    """An indexed library of one scene, on a mount that takes files of one MiB."""
    home = tmp_path_factory.mktemp("hostile")
    make(home / "library/0.mp4", 0, seconds=3)
    done = reelfs(home, "index", "--only", "search", "--jobs", "1", home / "library")
    assert (done.returncode, done.stderr) == (0, "")
    flags = ("--read-write", "-o", "plugin.search.max_upload_size_mb=1")
    with mounted(home, home / "library", *flags, expected=EXPECTED) as mount:
        yield mount


def found(folder: Path) -> list[str]:
    return [row["source"] for row in json.loads((folder / "results.json").read_bytes())["results"]]


def refused(path: Path) -> int | None:
    with pytest.raises(OSError) as raised:
        os.listdir(path)
    return raised.value.errno


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in chunks:
        parts += [len(data).to_bytes(4), kind, data, zlib.crc32(kind + data).to_bytes(4)]
    return b"".join(parts)


def bombs(video: bytes) -> dict[str, bytes]:
    """Small files that claim to be large, hide something large, or are not what they are called."""
    head = (1).to_bytes(4) * 2 + bytes((8, 0, 0, 0, 0))
    huge = (60_000).to_bytes(4) * 2 + bytes((8, 2, 0, 0, 0))
    text = b"k\0\0" + zlib.compress(bytes(100 * MIB), 9)
    pixel = zlib.compress(b"\0\0")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("x", bytes(10 * MIB))
    entities = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10 if n else "x"}">' for n in range(10))
    return {
        "wide.png": png((b"IHDR", huge), (b"IDAT", zlib.compress(bytes(9 * MIB))), (b"IEND", b"")),
        "words.png": png((b"IHDR", head), (b"zTXt", text), (b"IDAT", pixel), (b"IEND", b"")),
        "wide.webp": b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\xff\x3f\0\xff\x3f\0" + bytes(8),
        "wide.gif": b"GIF89a\xff\xff\xff\xff\x80" + bytes(8) + b",\0\0\0\0" + b"\xff" * 4 + b"\0\b\1\0\0;",
        "wide.bmp": b"BM" + bytes(8) + b"6\0\0\0(\0\0\0" + b"\xa0\x86\1\0" * 2 + b"\1\0\x18" + bytes(25),
        "wide.ppm": b"P6 100000 100000 255\n" + bytes(100),
        "wide.tiff": b"II*\0\x08\0\0\0\0\0" + bytes(100),
        "laughs.svg": f"<!DOCTYPE svg [{entities}]><svg width='1e9' height='1e9'>&e9;</svg>".encode(),
        "archive.mp4": archive.getvalue(),
        "archive.png": archive.getvalue(),
        "picture.mp4": png((b"IHDR", head), (b"IDAT", pixel), (b"IEND", b"")),
        "text.mp4": b"no video",
        "list.mp4": b"ffconcat version 1.0\nfile /etc/passwd\n",
        "playlist.ts": b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n",
        "video.mkv": video[:2000],
        "cut.mp4": video[:1000],
    }  # fmt: skip


def test_bombs_and_impostors_fail_alone(searched: Mount, tmp_path: Path) -> None:
    """Pictures by their number of pixels before they are decoded, whatever carries them; no other file."""
    drop = searched / "search/drop"
    video = (searched / "0.mp4").read_bytes()
    wide: tuple[str, ...] = (
        "-f",
        "lavfi",
        "-i",
        "color=gray:s=8448x8448:r=1",
        "-frames:v",
        "1",
        "-preset",
        "ultrafast",
    )
    subprocess.run(["ffmpeg", "-v", "error", *wide, tmp_path / "wide.mp4"], check=True, timeout=60)
    for name, data in (bombs(video) | {"wide.mp4": (tmp_path / "wide.mp4").read_bytes()}).items():
        assert len(data) < MIB, name
        (drop / name).write_bytes(data)
        assert refused(drop / f"{name}.results/@") in (errno.EIO, errno.ENODATA, errno.EFBIG), name
    # What is a picture and an archive is a picture; what is a video and an archive is a video.
    archive = bombs(video)["archive.mp4"]
    Image.fromarray(scene(0, 320, 180, 1.0)).save(tmp_path / "both.png")
    for name, data in (("both.png", (tmp_path / "both.png").read_bytes()), ("both.mp4", video)):
        (drop / name).write_bytes(data + archive)
        assert found(drop / f"{name}.results/@")[:1] == ["0.mp4"]
    assert searched.status()["counters"]["worker_restarts"] == 0, "no worker had to be killed"
    for name in os.listdir(drop):
        os.unlink(drop / name)


def test_files_that_come_at_a_time_are_kept_each_as_it_is(searched: Mount) -> None:
    """Eight that fit and four over the limit, written side by side, piece by piece."""
    drop, wrong = searched / "search/drop", []
    bodies = {f"{n}.png": os.urandom(64) * (14_000 + n) for n in range(8)}
    bodies |= {f"large{n}.png": bytes(MIB + 1 + n) for n in range(4)}
    begin = threading.Barrier(len(bodies))

    def write(name: str) -> None:
        begin.wait()
        try:
            with (drop / name).open("wb", buffering=0) as file:
                for at in range(0, len(bodies[name]), 100_000):
                    file.write(bodies[name][at : at + 100_000])
        except OSError as error:
            wrong.append((name, error.errno))

    threads = [threading.Thread(target=write, args=(name,)) for name in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(wrong) == [(f"large{n}.png", errno.EFBIG) for n in range(4)]
    kept = {name: (drop / name).read_bytes() for name in os.listdir(drop)}
    assert {name: kept.get(name) for name in bodies if name[0] != "l"} == {
        name: body for name, body in bodies.items() if name[0] != "l"
    }
    assert all(len(data) <= MIB for data in kept.values())
    for name in kept:
        os.unlink(drop / name)


def test_names_that_cannot_be(searched: Mount) -> None:
    drop, saved = searched / "search/drop", searched / "search/saved"
    for name, number in ((".x", errno.EINVAL), ("a.results", errno.EINVAL), ("x" * 250, errno.ENAMETOOLONG)):
        with pytest.raises(OSError) as raised:
            (drop / name).write_bytes(b"x")
        assert raised.value.errno == number, name
        with pytest.raises(OSError):
            os.mkdir(saved / name if name != "a.results" else saved / ".y")
    assert os.listdir(drop) == os.listdir(saved) == []


def test_questions_that_are_kept_are_text_and_short(searched: Mount) -> None:
    saved = searched / "search/saved"
    os.mkdir(saved / "q")
    before = (saved / "q/.query").read_bytes()
    for text, number in (
        (b"text/" + b"x" * 10 * MIB, errno.EFBIG), (b"text/" + b"x" * 5000, errno.EINVAL),
        (b"\xff\xfe\0", errno.EINVAL),
    ):  # fmt: skip
        with pytest.raises(OSError) as raised:
            (saved / "q/.query").write_bytes(text)
        assert raised.value.errno == number
        assert (saved / "q/.query").read_bytes() == before
    for text in (
        b"clip/..%2F..%2Fetc%2Fpasswd@1s-2s\n",
        b"saved/q/@\n",
        b"text/a/../../b\n",
        b"drop/x\n",
        b"\n",
    ):
        (saved / "q/.query").write_bytes(text)
        assert refused(saved / "q/@") in (errno.EINVAL, errno.ENOENT), text
    os.rmdir(saved / "q")


def test_spellings_of_what_is_elsewhere(searched: Mount) -> None:
    """Nothing outside of the library is reached, however it is written; nor is anything asked for ever."""
    for path in (
        *("%2e%2e%2Fetc%2Fpasswd", "..%2f..%2f0.mp4", "%252e%252e%252f0.mp4", "a%00", "0.mp4%2F..%2F0.mp4"),
        *("%C0%AE%C0%AE%2F0.mp4", "%ff", "%", "%2", "%zz", ".%2F.%2F0.mp4", "a%2F%2F0.mp4", "%2Fetc%2Fgroup"),
        *(".reelfs%2Fstatus.json", "search%2Fclip", "search%2Fsaved%2Fx", "library", "~", "$HOME", "`id`"),
    ):  # fmt: skip
        for question in (f"frame/{path}@1s", f"clip/{path}@0s-1s"):
            assert refused(searched / f"search/{question}/@") in (errno.EINVAL, errno.ENOENT), question
    for moment in (
        "-1s",
        "1e9s",
        "nan",
        "inf",
        "5s-1s",
        "@",
        "1s@",
        "9" * 200 + "s",
        "0x1s",
        "\uff11s",
        "99s-",
    ):
        for kind in ("frame", "clip"):
            assert refused(searched / f"search/{kind}/0.mp4@{moment}/@") in (errno.EINVAL, errno.ENOENT), (
                moment
            )
    usual = found(searched / "search/frame/0.mp4@1s/min:0/@")
    assert found(searched / "search/frame/%2F0.mp4@1s/min:0/@") == usual
    assert found(searched / f"search/frame/0.mp4@1s/min:0{'/limit:20' * 390}/@") == usual
    assert refused(searched / f"search/frame/0.mp4@1s{'/limit:20' * 500}/@") == errno.ENAMETOOLONG
    for option in ("limit:1e9", "limit:-1", "min:nan", "min:9", "sort:'", "tier:*"):
        assert refused(searched / f"search/frame/0.mp4@1s/{option}/@") == errno.EINVAL, option
    assert found(searched / "search/frame/0.mp4@1s/min:0/in:..%2F../@") == []


@contextmanager
def small_disk(path: Path) -> Iterator[None]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs: only root may")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    """While it is written, and when it is kept: no room is said as such, and what was there stays."""
    (tmp_path / "library").mkdir()
    disk = tmp_path / "disk"
    flags = ("--read-write", "-o", f"plugin.search.folder={disk}")
    full = (r": no room where files are dropped",)
    with small_disk(disk), mounted(tmp_path, tmp_path / "library", *flags, expected=full) as mount:
        drop = mount / "search/drop"
        (drop / "a.png").write_bytes(b"a" * MIB)
        for size in (8 * MIB, 2 * MIB):
            with pytest.raises(OSError) as raised:
                (drop / "b.png").write_bytes(os.urandom(size))
            assert raised.value.errno == errno.ENOSPC
            assert (drop / "a.png").read_bytes() == b"a" * MIB
            assert os.listdir(drop) == ["a.png"]
        assert not list(disk.rglob(".part-*"))
        assert shutil.disk_usage(disk).used < 2 * MIB
        (drop / "b.png").write_bytes(b"b" * MIB)
        assert sorted(os.listdir(drop)) == ["a.png", "b.png"]
