"""`reelfs index` as a process: a bucket and a folder, twice, interrupted, with what cannot be played."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path

import pytest
import trio
from vfs_mp4 import sidecar, source

from tests.bare_bucket import bare_bucket
from vfs import Settings, StoredObject, open_runtime
from vfs.indexjournal import Journal

sys.path[:0] = [str(Path(__file__).resolve().parents[2] / "scripts")]
encode: Callable[..., Path] = importlib.import_module("sample_media").encode


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Fragmented without and with an mfra, progressive, and what is no video."""
    folder = tmp_path_factory.mktemp("videos")
    cut = encode(folder / "f.mp4", frames=90, gop=15, fragmented=True, size=(160, 90)).read_bytes()
    whole = encode(folder / "p.mp4", frames=30, gop=15, size=(160, 90)).read_bytes()
    bare = cut[: cut.rindex(b"mfra") - 4]
    found = {f"games/f{n}.mp4": bare for n in range(6)}
    return found | {
        "games/with mfra.mp4": cut,
        "games/p.mp4": whole,
        "games/bad.mp4": b"nothing of the kind",
        "notes.txt": b"x",
    }


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "XDG_STATE_HOME": str(tmp_path / "state"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "auto",
    }


def index(environ: dict[str, str], *arguments: str, code: int = 0) -> list[str]:
    """The lines that it prints."""
    command = [sys.executable, "-m", "vfs.cli", "index", "--only", "frames", *arguments]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout.splitlines()


def states(lines: list[str]) -> dict[str, str]:
    """State by key of the lines for files."""
    rows = [line.split("  ", 1) for line in lines[1:-1]]
    return {rest.split(": ")[0].strip(): state.strip() for state, rest in rows}


@pytest.fixture
def bucket(videos: dict[str, bytes], environ: dict[str, str]) -> Iterator[dict[str, str]]:
    with bare_bucket(videos) as url:
        environ["AWS_ENDPOINT_URL"] = url
        yield environ


def test_a_bucket_is_indexed_into_the_cache(
    bucket: dict[str, str], videos: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later mounts find frames by it; a second run has nothing to do; patterns choose."""
    some = index(bucket, "s3://bucket", "games/f[01]*")
    assert states(some) == {"games/f0.mp4": "made", "games/f1.mp4": "made"}
    found = states(index(bucket, "s3://bucket", "--jobs", "3"))
    assert found["games/bad.mp4"] == "unplayable"
    assert found["games/p.mp4"] == found["games/with mfra.mp4"] == "none needed"
    assert [state for key, state in sorted(found.items()) if "/f" in key] == ["made"] * 4
    again = index(bucket, "s3://bucket")
    assert again[0] == "0 videos to look at"
    assert again[-1].startswith("9 videos in ")
    assert again[-1].endswith(": 6 indexed, 2 need none, 1 unplayable")
    for key, value in bucket.items():
        monkeypatch.setenv(key, value)
    assert trio.run(source_of, "games/f3.mp4", Settings.load({"source": "s3://bucket"})) == "sidecar"


async def source_of(key: str, settings: Settings) -> str:
    """Where a mount takes the index of a file from."""
    async with open_runtime(settings.model_copy(update={"cache_size": 0})) as runtime:
        root = (await runtime.tree.root()).place
        assert root is not None
        place = await root.find(key)
        assert place is not None
        return (await source.movie_at(place, Fraction(1), Fraction(1))).index_source


def test_a_folder_gets_sidecars_when_they_are_asked_for(
    videos: dict[str, bytes], environ: dict[str, str], tmp_path: Path
) -> None:
    folder = tmp_path / "library"
    for key, data in videos.items():
        (folder / key).parent.mkdir(parents=True, exist_ok=True)
        (folder / key).write_bytes(data)
    foreign = folder / "games/f5.mp4.index.sqlite"
    foreign.write_bytes(b"somebody's")
    found = states(index(environ, str(folder), "--write-sidecars", code=1))
    assert found.pop("games/f5.mp4") == "failed"
    assert foreign.read_bytes() == b"somebody's"
    made = {key for key, state in found.items() if state == "made"}
    assert made == {"games/with mfra.mp4", *(f"games/f{n}.mp4" for n in range(5))}
    for key in made:
        data = (folder / f"{key}.index.sqlite").read_bytes()
        listed = sidecar.parse_sqlite(data, len(videos[key]))
        assert videos[key][int(listed.offset[0]) + 4 :][:4] == b"moof"
    assert not [path for path in folder.rglob("*") if path.name.startswith(".")]
    foreign.unlink()
    assert states(index(environ, str(folder), "--write-sidecars")) == {"games/f5.mp4": "made"}
    changed = folder / "games/bad.mp4"
    changed.write_bytes(videos["games/p.mp4"])
    assert states(index(environ, str(folder), "--write-sidecars")) == {"games/bad.mp4": "none needed"}


def test_where_nothing_can_be_kept_it_says_what_to_do(environ: dict[str, str], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "vfs.cli", "index", "--only", "frames", str(tmp_path)]
    done = subprocess.run(command, env=environ, capture_output=True, timeout=60, check=False, text=True)
    assert done.returncode == 2
    assert "--write-sidecars, or -o cache_dir=DIR" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def processes_of(environ: dict[str, str]) -> list[int]:
    """Processes that were started for a run with this environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            inside = (
                f"XDG_STATE_HOME={environ['XDG_STATE_HOME']}".encode() in (entry / "environ").read_bytes()
            )
        except OSError:
            continue
        if inside and (entry / "cmdline").read_bytes():
            found.append(int(entry.name))
    return found


@pytest.mark.parametrize("how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGKILL])
def test_an_interrupted_run_goes_on_where_it_was(
    videos: dict[str, bytes], environ: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    """Killed in the middle: no processes stay, what was done is done, and the next run does the rest."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(24):
        (folder / f"f{number:02}.mp4").write_bytes(videos["games/f0.mp4"])
    command = [
        sys.executable,
        "-m",
        "vfs.cli",
        "index",
        "--only=frames",
        str(folder),
        "--write-sidecars",
        "--jobs=1",
    ]
    running = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "24 videos to look at\n"
    first = running.stdout.readline()
    running.send_signal(how)
    told, errors = running.communicate(timeout=30)
    assert "Traceback" not in errors
    assert running.returncode == (130 if how == signal.SIGINT else -signal.SIGKILL)
    ended = time.monotonic() + 20
    while processes_of(environ):
        assert time.monotonic() < ended
        time.sleep(0.05)
    told_done = {
        line.split()[1].rstrip(":") for line in [first, *told.splitlines()] if line.startswith("made")
    }
    rest = states(index(environ, str(folder), "--write-sidecars"))
    assert not told_done & {key for key, state in rest.items() if state == "made"}
    assert len(list(folder.glob("*.index.sqlite"))) == 24
    for path in folder.glob("*.index.sqlite"):
        sidecar.parse_sqlite(path.read_bytes(), len(videos["games/f0.mp4"]))


def test_the_journal_of_a_large_library_stays_on_disk(tmp_path: Path) -> None:
    """5,000 keys of any bytes: listed, worked through, listed again with some of them changed."""
    journal = Journal(tmp_path / "index" / "x.sqlite")
    names = [f"k{n}-\udcff.mp4" for n in range(5_000)]
    journal.seen(StoredObject(name, n, "v1") for n, name in enumerate(names))
    assert journal.waiting() == 5_000
    assert sorted(journal.unfinished()) == sorted(names)
    for name in journal.unfinished():
        journal.done(name, "made", "")
    journal.close()
    again = Journal(tmp_path / "index" / "x.sqlite")
    again.seen(StoredObject(name, n, "v2" if n % 250 == 0 else "v1") for n, name in enumerate(names[1:], 1))
    again.forget()
    assert (again.waiting(), dict(again.outcomes())) == (19, {"made": 4_980})
    again.close()


def test_watching_finds_what_comes_later(
    videos: dict[str, bytes], environ: dict[str, str], tmp_path: Path
) -> None:
    """With --watch it lists again and again, until it is interrupted."""
    folder = tmp_path / "library"
    folder.mkdir()
    (folder / "a.mp4").write_bytes(videos["games/p.mp4"])
    command = [
        sys.executable,
        "-m",
        "vfs.cli",
        "index",
        "--only=frames",
        str(folder),
        "--jobs=1",
        "--watch=100ms",
    ]
    command += ["-o", f"cache_dir={tmp_path / 'cache'}"]
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any("none needed" in line and "a.mp4" in line for line in lines)
        (folder / "b.mp4").write_bytes(videos["games/f0.mp4"])
        assert any(line.startswith("made") and "b.mp4" in line for line in lines)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("flags", "expected"), [((), 10), pytest.param(("--nice", "3"), 3, marks=pytest.mark.slow)]
)
def test_its_processes_yield_to_others(
    videos: dict[str, bytes], environ: dict[str, str], tmp_path: Path, flags: tuple[str, ...], expected: int
) -> None:
    """Those that work on files and those that decode, with all their threads; the command itself not."""
    folder = tmp_path / "library"
    folder.mkdir()
    for number in range(8):
        (folder / f"{number}.mp4").write_bytes(videos["games/p.mp4"])
    command = [sys.executable, "-m", "vfs.cli", "index", "--only=search", "--jobs=1", str(folder), *flags]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as running:
        try:
            assert running.stdout is not None
            lines = iter(running.stdout.readline, "")
            assert any(line.startswith("made") for line in lines)
            running.send_signal(signal.SIGSTOP)  # it hands out no more: its processes stay as they are
            found = {pid: priorities(pid) for pid in processes_of(environ)}
        finally:
            running.send_signal(signal.SIGCONT)
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=30)
    assert found.pop(running.pid) == {0}
    assert len(found) >= 2, "one that works on files and its worker"
    assert set().union(*found.values()) == {expected}


def priorities(pid: int) -> set[int]:
    """Of all threads of a process."""
    try:
        return {os.getpriority(os.PRIO_PROCESS, int(task)) for task in os.listdir(f"/proc/{pid}/task")}
    except (FileNotFoundError, ProcessLookupError):
        return set()
