"""Truncated, lying and hostile videos on a mount: an error for that name alone, soon, in little memory."""

from __future__ import annotations

import contextlib
import errno
import json
import random
import re
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

from sample_media import boxes, encode, find  # type: ignore[import-not-found]  # noqa: E402

from tests.faulty_mounts import eventually, read, timed  # noqa: E402

MountIt = Callable[..., Any]
SHARED = ROOT.parent / "shared" / "media"
#: What a derived name of a bad file may answer.
HONEST = {errno.EIO, errno.ENODATA, errno.EOPNOTSUPP, errno.EFBIG, errno.ENOENT}
SECONDS = 1.0
GROWTH = 64 << 20
NAMES = ("@0.3s.jpg", "@0.3s.mp4", "@0.2s-0.9s.mp4", "@0.2s-0.9s.key.mp4", "@0.2s-0.9s.frag.mp4", "@f3.ppm")
CONTAINERS = ("moov", "moov/trak", "moov/trak/mdia", "moov/trak/mdia/minf", "moov/trak/mdia/minf/stbl")
TABLES = ("stts", "ctts", "stsc", "stsz", "stco", "stss", "stsd")
SIZES = (0, 1, 7, 9, 0x7FFFFFFF, 0xFFFFFFFF)
COUNTS = (0, 1, 0x00FFFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


@dataclass
class Hall:
    """A mounted folder that files are dropped into."""

    mount: Any
    folder: Path

    def drop(self, name: str, body: bytes) -> Path:
        """A file in the source; where it is on the mount."""
        (self.folder / name).write_bytes(body)
        path: Path = self.mount / name
        return path

    def peak(self) -> int:
        """Most memory the daemon has had since `forget_peak`, bytes."""
        status = Path(f"/proc/{self.mount.process.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found is not None
        return int(found[1]) << 10

    def forget_peak(self) -> None:
        """Measure `peak` from now on."""
        Path(f"/proc/{self.mount.process.pid}/clear_refs").write_text("5")

    def notes(self) -> Mapping[str, list[str]]:
        """What the daemon reports, by path."""
        found: Mapping[str, list[str]] = json.loads((self.mount / ".reelfs/status.json").read_bytes())[
            "notes"
        ]
        return found


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, bytes]:
    folder, found = tmp_path_factory.mktemp("films"), {}
    for name, how in {
        "moov-last": {"faststart": False},
        "moov-first": {"faststart": True},
        "fragmented": {"fragmented": True},
    }.items():
        path = encode(folder / f"{name}.mp4", frames=30, gop=10, size=(160, 96), **how)
        found[name] = Path(path).read_bytes()
    return found


@pytest.fixture(scope="module")
def hall(mounting: MountIt, films: Mapping[str, bytes]) -> Iterator[Hall]:
    mount = mounting({"good.mp4": films["moov-first"]}, attr_ttl="0", negative_ttl="0")
    mount.expect_log("(lookup|getattr|open|read|getxattr) .*: |: mounted$")
    made = Hall(mount, Path(mount.settings["source"]))
    for name in NAMES:  # the decoding process has started, tables are in memory
        assert isinstance(read(mount / f"good{name}"), bytes)
    yield made
    assert mount.process.poll() is None


def look(hall: Hall, path: Path, body: bytes, names: tuple[str, ...] = NAMES) -> dict[str, bytes | int]:
    """Read a file and what is derived from it; the answers. Fails for what must never happen."""
    assert read(path) == body
    hall.forget_peak()
    before, found = hall.peak(), {}
    for name in names:
        derived = path.with_name(path.stem + name)
        for _ in range(3):  # a busy machine is not a fault
            found[name], seconds = timed(partial(read, derived))
            if seconds < SECONDS:
                break
        assert seconds < SECONDS, f"{derived.name}: {seconds:.1f} s each time"
        result = found[name]
        if isinstance(result, bytes):
            assert derived.stat().st_size == len(result) > 0
        else:
            assert result in HONEST, f"{derived.name}: {errno.errorcode[result]}"
    assert hall.peak() - before < GROWTH
    return found


def look_at_all(hall: Hall, damaged: Iterator[tuple[str, bytes]], names: tuple[str, ...] = NAMES) -> None:
    """`look` at each; then the daemon must have a reason for each that failed, and the rest must be well."""
    failed = set()
    for name, body in damaged:
        path = hall.drop(f"{name}.mp4", body)
        found = look(hall, path, body, names)
        if set(found.values()) & (HONEST - {errno.ENOENT}):
            failed.add(path.name)
    assert failed
    missing: set[str] = set()

    def all_have_reasons() -> bool:
        missing.update(failed)
        missing.difference_update(hall.notes())
        return not missing

    with contextlib.suppress(AssertionError):
        eventually(all_have_reasons)
    assert missing == set()
    assert isinstance(read(hall.mount / f"good{NAMES[2]}"), bytes)


# -- damage done to good files -----------------------------------------------------------------------------


def cut(film: bytes) -> Iterator[tuple[str, bytes]]:
    """Truncated at the edges of boxes, and at some places between."""
    ends = {box.end for path in ("moov", "moof", "mdat", "ftyp") for box in find(film, path)}
    points = {0, 1, 4, 7, 8, 9, 15, 16, len(film) - 1} | {
        end + step for end in ends for step in (-9, -1, 4, 8)
    }
    points |= {len(film) * part // 12 for part in range(1, 12)}
    for point in sorted(p for p in points if 0 <= p < len(film)):
        yield f"cut-{point}", film[:point]


def lying(film: bytes) -> Iterator[tuple[str, bytes]]:
    """Boxes of impossible sizes, and tables that claim too much or nothing."""
    parts = [("ftyp", b) for b in find(film, "ftyp")]
    parts += [(path.rpartition("/")[2], b) for path in CONTAINERS for b in find(film, path)]
    parts += [(n, b) for n in TABLES for b in find(film, f"{CONTAINERS[-1]}/{n}")]
    parts += [(n, b) for n in ("moof", "mdat") for b in list(find(film, n))[:1]]
    parts += [(n, b) for n in ("tfhd", "tfdt", "trun") for b in list(find(film, f"moof/traf/{n}"))[:1]]
    parts += [(n, b) for n in ("mvhd", "trak/tkhd", "trak/mdia/mdhd") for b in find(film, f"moov/{n}")]
    for kind, box in parts:
        kind = kind.rpartition("/")[2]
        for size in SIZES:
            yield f"size-{kind}-{box.start}-{size}", patched(film, box.start, struct.pack(">I", size))
        if kind in TABLES or kind == "trun":
            for number in COUNTS:
                at = box.payload + (8 if kind == "stsz" else 4)
                yield f"count-{kind}-{box.start}-{number}", patched(film, at, struct.pack(">I", number))
        if kind in ("mvhd", "mdhd"):
            yield f"timescale-{kind}-{box.start}", patched(film, box.payload + 12, bytes(4))


def patched(film: bytes, at: int, value: bytes) -> bytes:
    return film[:at] + value + film[at + len(value) :]


def monsters() -> Iterator[tuple[str, bytes]]:
    """Files made by hand to hurt."""
    ftyp = struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 512, b"isom")
    nested = b""
    for depth in range(20_000):
        kind = (b"moov", b"trak", b"mdia", b"minf", b"stbl")[depth % 5]
        nested = struct.pack(">I4s", min(8 + 8 * (20_000 - depth), 0xFFFFFFFF), kind) + nested
    yield "nested", ftyp + struct.pack(">I4s", 8 + len(nested), b"moov") + nested
    yield "endless", ftyp + struct.pack(">I4s", 0, b"free") * 1000
    yield "tiny-boxes", ftyp + struct.pack(">I4s", 8, b"free") * 100_000
    yield "many-moofs", ftyp + struct.pack(">I4s", 8, b"moof") * 50_000
    yield "many-moovs", ftyp + struct.pack(">I4s", 8, b"moov") * 50_000
    yield "wide", ftyp + struct.pack(">I4sQ", 1, b"moov", 1 << 62)
    yield "backwards", ftyp + struct.pack(">I4sQ", 1, b"moov", 4)
    yield "zeros", bytes(200_000)
    yield "text", b"this is not a video\n" * 500
    yield "random", random.Random(5).randbytes(100_000)
    yield "ones", b"\xff" * 100_000


@pytest.mark.parametrize("film", ["moov-last", "moov-first", "fragmented"])
def test_a_truncated_film_is_an_error_or_what_is_left(
    hall: Hall, films: Mapping[str, bytes], film: str
) -> None:
    damaged = ((f"{film}-{name}", body) for name, body in cut(films[film]))
    look_at_all(hall, damaged, NAMES[:1] + NAMES[2:3] + NAMES[4:5])


@pytest.mark.parametrize("film", ["moov-last", "fragmented"])
def test_a_film_that_lies_about_sizes_and_counts(hall: Hall, films: Mapping[str, bytes], film: str) -> None:
    chosen = random.Random(3).sample([*lying(films[film])], 36)
    look_at_all(hall, ((f"{film}-{name}", body) for name, body in chosen), NAMES[:1] + NAMES[2:3])


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("film", ["moov-last", "moov-first", "fragmented"])
def test_a_film_that_lies_about_anything(hall: Hall, films: Mapping[str, bytes], film: str) -> None:
    look_at_all(hall, ((f"all-{film}-{name}", body) for name, body in lying(films[film])))


def test_files_made_to_hurt(hall: Hall) -> None:
    look_at_all(hall, monsters())


def absurd(film: bytes) -> Iterator[tuple[str, bytes]]:
    """Well formed, and impossible."""
    stsd = next(find(film, f"{CONTAINERS[-1]}/stsd"))
    yield "giant-picture", patched(film, stsd.payload + 8 + 32, b"\xff\xff\xff\xff")
    yield "no-picture", patched(film, stsd.payload + 8 + 32, bytes(4))
    yield "other-codec", patched(film, stsd.payload + 12, b"xxxx")
    yield "encrypted", patched(film, stsd.payload + 12, b"encv")
    yield "broken-headers", patched(film, stsd.payload + 8 + 86 + 8, random.Random(1).randbytes(30))
    for number, elst in enumerate(find(film, "moov/trak/edts/elst")):
        for value in (0x7FFFFFFF, 0x80000001, 0xFFFFFFFF):
            yield f"edit-{number}-{value}", patched(film, elst.payload + 12, struct.pack(">I", value))
            yield f"length-{number}-{value}", patched(film, elst.payload + 8, struct.pack(">I", value))
    mdhd = next(find(film, "moov/trak/mdia/mdhd"))
    yield "fast-clock", patched(film, mdhd.payload + 12, b"\xff\xff\xff\xff")
    yield "slow-clock", patched(film, mdhd.payload + 12, struct.pack(">I", 1))
    mdat = next(find(film, "mdat"))
    yield "noise", patched(film, mdat.payload, random.Random(2).randbytes(mdat.end - mdat.payload))


def test_films_that_cannot_be(hall: Hall, films: Mapping[str, bytes]) -> None:
    look_at_all(hall, ((f"absurd-{name}", body) for name, body in absurd(films["moov-first"])))


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    film=st.sampled_from(["moov-last", "moov-first", "fragmented"]),
    edits=st.lists(
        st.tuples(
            st.floats(0, 1, exclude_max=True),
            st.sampled_from(
                [b"\x00", b"\x01", b"\x7f", b"\xff", b"\x00" * 4, b"\xff" * 4, b"\xff" * 8, b"moov", b"stsz"]
            ),
        ),
        min_size=1,
        max_size=6,
    ),
    end=st.floats(0.5, 1),
)
def test_films_with_bytes_of_their_headers_changed(
    hall: Hall, films: Mapping[str, bytes], film: str, edits: list[tuple[float, bytes]], end: float
) -> None:
    """Hypothesis chooses the places, in everything but the media."""
    body = films[film]
    headers = [at for box in boxes(body) if box.kind != b"mdat" for at in range(box.start, box.end)]
    for place, value in edits:
        body = patched(body, headers[int(place * len(headers))], value)[: len(body)]
    if end < 0.9:
        body = body[: int(len(body) * end / 0.9)]
    name = f"mutated-{film}-{xxh(body)}.mp4"
    look(hall, hall.drop(name, body), body, NAMES[:1] + NAMES[2:3])


def xxh(body: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(body)


# -- what the user is told ----------------------------------------------------------------------------------


def reelfs(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vfs.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("told-cut.mp4", "moov claims|no moov"),
        ("told-noise.mp4", "@0.3s.jpg"),
        ("told-encrypted.mp4", "[Ee]ncrypted"),
    ],
)
def test_the_reason_is_in_the_log_in_explain_and_in_the_status(
    hall: Hall, films: Mapping[str, bytes], name: str, reason: str
) -> None:
    """For the derived name that failed, and for its file; whoever reads it through the command is told."""
    film = films["moov-first"]
    odd = dict(absurd(film))
    bodies = {"cut": film[:600], **odd}
    path = hall.drop(name, bodies[name[5:-4]])
    derived = path.with_name(path.stem + "@0.3s.jpg")
    assert read(derived) in HONEST - {errno.ENOENT}
    assert re.search(f"{path.stem}.*({reason})", "\n".join(hall.mount.lines()))
    eventually(lambda: bool(hall.notes().get(name)))
    assert re.search(reason, "\n".join(hall.notes()[name]))
    assert re.search(reason, reelfs("explain", path).stdout)
    told = reelfs("explain", derived)
    assert re.search(reason, told.stdout + told.stderr)
    told = reelfs("cat", derived)
    assert told.returncode == 1
    assert re.search(reason, told.stderr)
    assert "Traceback" not in told.stderr


# -- files nobody here made ---------------------------------------------------------------------------------


@pytest.mark.shared
@pytest.mark.parametrize(
    "name",
    [
        *("derived__empty.mp4", "derived__frag_cut_mid_moof.mp4", "derived__moov_size_lies.mp4"),
        *("derived__stsz_count_lies.mp4", "derived__truncated_mid_mdat.mp4"),
        *("derived__truncated_mid_moov.mp4", "decord_corrupted.mp4", "media_sample_mdat_too_long.mp4"),
        *("media_sample_with_invalid_nalu.mp4", "media_sample_fragmented_clearkey.mp4"),
        *("mp4ff_prog_8s_enc_dashinit.mp4", "mp4ff_vvc_400kbps_2s.mp4"),
    ],
)
def test_damaged_files_as_they_are_found(hall: Hall, name: str) -> None:
    body = (SHARED / name).read_bytes()
    found = look(hall, hall.drop(name, body), body)
    if "clearkey" in name or "_enc_" in name:
        assert set(found.values()) == {errno.EOPNOTSUPP}
    if "empty" in name:
        assert set(found.values()) == {errno.ENODATA}
