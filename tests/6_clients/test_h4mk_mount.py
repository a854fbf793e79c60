"""Containers on a real mount: programs walk them, players play what is in them, keys open what is closed."""

from __future__ import annotations

import hashlib
import json
import os
import struct
import subprocess
import zlib
from pathlib import Path

import client_mounts
import pytest
from client_mounts import mounted, reelfs
from vfs_h4mk import keys
from vfs_h4mk.codecs import REFERENCE

SHARED = client_mounts.ROOT.parent / "shared" / "h4mk"
SECRET = "00112233445566778899aabbccddeeff"  # obviously a fake


def frames(path: Path) -> str:
    """The MD5 of every decoded frame, by Debian's ffmpeg."""
    done = subprocess.run(
        ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:v", "-f", "framemd5", "-"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.fuse
@pytest.mark.parametrize(
    "fragmented", [pytest.param(False, marks=pytest.mark.slow), True], ids=["progressive", "fragmented"]
)
def test_a_packed_video_plays_and_gives_frames(tmp_path: Path, fragmented: bool) -> None:
    """`payload.mp4` is the video again; what is derived of it is what would be derived of the video."""
    source = tmp_path / "library"
    source.mkdir()
    video = client_mounts.encode(source / "game.mp4", frames=60, size=(160, 90), fragmented=fragmented)
    packed = source / "game.h4mk"
    done = reelfs(tmp_path, "h4mk", "pack", video, "-o", packed, "--block-size", "65536")
    assert (done.returncode, done.stderr) == (0, "")
    assert "seek entries" in done.stdout
    assert reelfs(tmp_path, "h4mk", "verify", packed).returncode == 0
    out = tmp_path / "again.mp4"
    assert reelfs(tmp_path, "h4mk", "unpack", packed, "-o", out).returncode == 0
    assert out.read_bytes() == video.read_bytes()
    with mounted(tmp_path, source) as mount:
        payload = mount / "game.h4mk" / "payload.mp4"
        assert payload.stat().st_size == video.stat().st_size
        assert payload.read_bytes() == video.read_bytes()
        assert frames(payload) == frames(video)
        for name in ("@1.0s.jpg", "@f7.png", "@0.5s-1.2s.mp4", "@1s.mp4"):
            assert (mount / f"game.h4mk/payload{name}").read_bytes() == (mount / f"game{name}").read_bytes()
        assert frames(mount / "game.h4mk/payload@0.5s-1.2s.mp4") == frames(mount / "game@0.5s-1.2s.mp4")
        for manifest in ("hls/master.m3u8", "dash/manifest.mpd"):
            played = [row.split(",")[5:] for row in frames(mount / "game.h4mk" / manifest).splitlines()]
            stored = [row.split(",")[5:] for row in frames(video).splitlines()]
            assert [row for row in played if row] == [row for row in stored if row]
        info = json.loads((mount / "game.h4mk/payload.mp4@/info.json").read_bytes())
        assert info == json.loads((mount / "game.mp4@/info.json").read_bytes())
        link = os.readlink(mount / "game.h4mk/seek/1.0s")
        assert (mount / "game.h4mk/seek/1.0s").read_bytes() == (mount / f"game.h4mk/seek/{link}").read_bytes()
        blocks = mount / "game.h4mk" / "blocks"
        names = sorted((n for n in os.listdir(blocks) if n.isdigit()), key=int)
        assert b"".join((blocks / n).read_bytes() for n in names) == video.read_bytes()
        assert (mount / "game.h4mk/container.h4mk").read_bytes() == packed.read_bytes()
        assert (mount / ".raw/game.h4mk").read_bytes() == packed.read_bytes()
        assert subprocess.run(["find", str(mount / "game.h4mk")], capture_output=True).returncode == 0


@pytest.mark.fuse
@pytest.mark.shared
def test_the_real_container_with_a_video(tmp_path: Path) -> None:
    truth = json.loads((SHARED / "s09_mp4_payload.json").read_text())
    with mounted(tmp_path, SHARED, expected=["the CRC of the b'CORE' chunk"]) as mount:
        payload = mount / "s09_mp4_payload.h4mk" / "payload.mp4"
        data = payload.read_bytes()
        assert hashlib.sha256(data).hexdigest() == truth["payload_concat_sha256"]
        assert frames(payload).count("\n") > 100
        picture = (mount / "s09_mp4_payload.h4mk/payload@5.0s.jpg").read_bytes()
        assert picture.startswith(b"\xff\xd8\xff")
        # Wrong magic: an ordinary file; another version: a directory that says why.
        assert (mount / "sd07_wrong_magic.h4mk").is_file()
        told = json.loads((mount / "sd08_version_2.h4mk/verify.json").read_bytes())
        assert "version 2" in told["info"]
        with pytest.raises(OSError, match="Input/output error"):
            (mount / "sd03_core_bitflip.h4mk/blocks/20").read_bytes()
        assert len((mount / "sd03_core_bitflip.h4mk/blocks/21").read_bytes()) > 0


def chunk(tag: bytes, payload: bytes) -> bytes:
    return tag + struct.pack(">II", len(payload), zlib.crc32(payload)) + payload


def masked(blocks: list[bytes], key: bytes) -> bytes:
    """As an export with a mask: it is put on before compression."""
    coded = (REFERENCE.encode(keys.unmask(block, key, n)) for n, block in enumerate(blocks))
    meta = json.dumps({"masked": True, "compression": {"engine": "geometric-reference"}}).encode()
    return b"H4MK\0\1\0\0" + b"".join(chunk(b"CORE", c) for c in coded) + chunk(b"META", meta)


@pytest.mark.fuse
def test_a_masked_container_opens_with_its_key_alone(tmp_path: Path) -> None:
    source = tmp_path / "library"
    (source / "games").mkdir(parents=True)
    blocks = [b"first block " * 50, b"second block " * 50]
    (source / "games" / "x.h4mk").write_bytes(masked(blocks, bytes.fromhex(SECRET)))
    with mounted(tmp_path, source, expected=["is masked: set its master_key"]) as mount:
        folder = mount / "games" / "x.h4mk"
        with pytest.raises(PermissionError):
            (folder / "blocks" / "0").read_bytes()
        assert len((folder / "blocks" / "0.raw").read_bytes()) > 0
        assert json.loads((folder / "manifest.json").read_bytes())["masked"] is True
    again = tmp_path / "again"
    again.mkdir()
    key_file = tmp_path / "keys.toml"
    key_file.write_text(f'["games/*.h4mk"]\nmaster_key = "{SECRET}"\n')
    key_file.chmod(0o600)
    config = tmp_path / "reelfs.toml"
    config.write_text('[h4mk]\nkeys = "keys.toml"\n')
    with mounted(again, source, "--config", str(config)) as mount:
        folder = mount / "games" / "x.h4mk"
        assert [(folder / "blocks" / str(n)).read_bytes() for n in (0, 1)] == blocks
        assert (folder / "payload.bin").read_bytes() == b"".join(blocks)
        assert SECRET not in (mount / ".reelfs" / "config.toml").read_text()
        assert SECRET not in mount.log.read_text()
    key_file.chmod(0o644)
    point = tmp_path / "other"
    point.mkdir()
    refused = reelfs(tmp_path, "mount", source, point, "--config", config)
    if refused.returncode == 0:
        reelfs(tmp_path, "umount", point)
    assert refused.returncode != 0
    assert "chmod 600" in refused.stderr
    assert SECRET not in refused.stderr
