"""Engines come as plugins: an installed package whose entry point offers a codec opens what it sealed."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

PLUGIN = """
from vfs_h4mk.codecs import hookimpl

class Backwards:
    engine = "core"

    def decoded_size(self, payload):
        return len(payload)

    def decode(self, payload, limit):
        return payload[::-1]

@hookimpl
def h4mk_codecs():
    return [Backwards()]
"""


def sealed(path: Path, blocks: list[bytes]) -> None:
    compression = {"engine": "core", "opaque": True, "sealed": True}
    parts = [(b"CORE", block) for block in blocks]
    parts.append((b"META", json.dumps({"compression": compression}).encode()))
    with path.open("wb") as out:
        out.write(b"H4MK\0\1\0\0")
        for tag, payload in parts:
            out.write(tag + struct.pack(">II", len(payload), zlib.crc32(payload)) + payload)


def cat(source: Path, path: str, packages: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "vfs.cli", "cat", str(source), path],
        capture_output=True,
        env={"PATH": os.environ["PATH"], "HOME": str(source), "PYTHONPATH": str(packages)},
        timeout=60,
        check=False,
    )


def test_a_sealed_container_opens_with_its_engine_alone(tmp_path: Path) -> None:
    source, packages = tmp_path / "source", tmp_path / "packages"
    source.mkdir()
    info = packages / "sealed_engine-1.0.dist-info"
    info.mkdir(parents=True)
    sealed(source / "x.h4mk", [b"olleh", b"dlrow"])
    refused = cat(source, "x.h4mk/blocks/0", packages)
    assert refused.returncode != 0
    assert b"sealed by the engine 'core', and no plugin decodes it" in refused.stderr
    assert cat(source, "x.h4mk/blocks/0.raw", packages).stdout == b"olleh"
    (packages / "sealed_engine.py").write_text(PLUGIN)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sealed-engine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[vfs_h4mk]\nsealed = sealed_engine\n")
    assert cat(source, "x.h4mk/blocks/0", packages).stdout == b"hello"
    assert cat(source, "x.h4mk/payload.bin", packages).stdout == b"helloworld"
