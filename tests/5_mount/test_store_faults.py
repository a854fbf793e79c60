"""A store that fails, seen from the kernel: right bytes or an error in time, never wrong ones, no hang."""

from __future__ import annotations

import errno
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "scripts")]

from sample_media import encode  # type: ignore[import-not-found]  # noqa: E402

from tests.faults.proxy import Rule  # noqa: E402
from tests.faulty_mounts import (  # noqa: E402
    DEADLINE,
    HONEST,
    LATE,
    SLACK,
    Bench,
    bench,
    eventually,
    read,
    read_uncached,
    started,
    timed,
)
from tests.servers import Server, moto_server, r2_server  # noqa: E402

MountIt = Callable[..., Any]
#: What the daemon may say about a store that fails.
TROUBLE = (
    r"(lookup|open|read|getattr|opendir|getxattr) .*(no usable answer|given up after|took longer)"
    r"|the store does not answer|: mounted$"
)
BODY = random.Random(7).randbytes(300_001)
#: Faults of single answers that the next attempt does not have.
PASSING = {
    "503": Rule("status", status=503),
    "429": Rule("status", status=429, retry_after="0"),
    "500": Rule("status", status=500),
    "reset": Rule("reset"),
    "reset in the body": Rule("reset", at=70_000),
    "short body": Rule("truncate"),
    "empty body": Rule("truncate", at=0),
    "range one off": Rule("range"),
    "range 64 KiB off": Rule("shift"),
    "no range": Rule("header", headers={"Content-Range": None}),
    "another total": Rule("header", headers={"Content-Range": "bytes 0-4095/99999999"}),
    "another etag": Rule("etag"),
    "hang": Rule("hang"),
    "hang in the body": Rule("hang", at=70_000),
    "late": Rule("delay", seconds=0.3),
}
#: Seconds that an operation may take where the bytes have to come, on a busy machine as well.
PATIENCE = 4 * DEADLINE
CLIPS = ("@0.5s-1.2s.mp4", "@0.7s.mp4", "@0.7s.jpg", "@0.5s-1.2s.key.mp4", "@0.3s-1s.frag.mp4")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with moto_server() as running:
        yield running


@pytest.fixture(scope="module")
def game(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = encode(tmp_path_factory.mktemp("game") / "game.mp4", frames=60, gop=20, faststart=False)
    return Path(path).read_bytes()


@pytest.fixture(scope="module")
def faulty(mounting: MountIt, server: Server) -> Iterator[Bench]:
    """One mount for many faults; each test reads objects nobody has read."""
    with bench(mounting, server, "faulty", {}, attr_ttl="0", dir_ttl="0") as made:
        made.mount.expect_log(TROUBLE)
        yield made


@pytest.fixture(scope="module")
def patient(mounting: MountIt, server: Server, game: bytes) -> Iterator[Bench]:
    """The same for faults that pass: on a busy machine, too, there is time for the next attempt."""
    settings = {"attr_ttl": "0", "dir_ttl": "0", "deadline": PATIENCE}
    with bench(mounting, server, "patient", {"game.mp4": game}, **settings) as made:
        made.mount.expect_log(TROUBLE)
        yield made


#: Where a read begins that a fault can spoil: what is read whole is asked for without a range.
START = {"range 64 KiB off": 1 << 17, "no range": 1 << 17}


def read_from(path: Path, start: int) -> bytes | int:
    """The bytes of a file from a position on, or the errno of what went wrong."""
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start)
            return file.read()
    except OSError as error:
        return error.errno or -1


_number = count()


def fresh(faulty: Bench, body: bytes, suffix: str) -> str:
    """The name of a new object, listed nowhere yet."""
    name = f"fresh{next(_number)}{suffix}"
    faulty.put(name, body)
    return name


@pytest.fixture(autouse=True)
def _no_faults_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    for name in {"faulty", "patient"} & {*request.fixturenames}:
        request.getfixturevalue(name).proxy.clear()


def rule_with(rule: Rule, **changes: Any) -> Rule:
    return Rule.from_dict(rule.to_dict() | changes)


@pytest.mark.parametrize("fault", PASSING)
def test_a_fault_that_passes_is_not_noticed(patient: Bench, fault: str) -> None:
    """The first answer is spoilt, the next is not: the bytes are right."""
    name = fresh(patient, BODY, ".bin")
    patient.proxy.reset()
    patient.proxy.fault(rule_with(PASSING[fault], kind="get", key=name, times=1))
    start = START.get(fault, 0)
    assert read_from(patient / name, start) == BODY[start:]
    assert sum(patient.proxy.counts().faults.values()) == 1


def test_a_fault_that_stays_is_an_error_in_time(faulty: Bench) -> None:
    """Never wrong bytes, never a wait beyond the deadline; without the fault the same files read well."""
    names = {fault: fresh(faulty, BODY, ".bin") for fault in PASSING if fault != "late"}
    for fault, name in names.items():
        rule = PASSING[fault]
        faulty.proxy.fault(rule_with(rule, kind="get", key=name, at=1000 if rule.at else rule.at))
    with ThreadPoolExecutor(len(names)) as pool:

        def reading(fault: str) -> tuple[Any, float]:
            return timed(lambda: read_from(faulty / names[fault], START.get(fault, 0)))

        results = dict(zip(names, pool.map(reading, names), strict=True))
    assert {fault: found for fault, (found, _) in results.items() if found not in HONEST} == {}
    assert {fault: seconds for fault, (_, seconds) in results.items() if seconds > LATE} == {}
    faulty.proxy.clear()
    assert [fault for fault, name in names.items() if read(faulty / name) != BODY] == []


@pytest.mark.parametrize(
    "fault", ["503", "reset in the body", "short body", "range 64 KiB off", "another etag"]
)
def test_clips_and_frames_of_a_failing_store_are_right_or_an_error(
    patient: Bench, game: bytes, fault: str
) -> None:
    name = fresh(patient, game, ".mp4")
    stem = name.removesuffix(".mp4")
    rule = rule_with(PASSING[fault], kind="get", key=name, probability=0.5)
    patient.proxy.fault(rule_with(rule, at=3000 if rule.at else None))
    wrong = []
    for clip in CLIPS:
        found, seconds = timed(partial(read, patient / (stem + clip)))
        assert seconds < 2 * PATIENCE + SLACK  # a lookup, and a read
        if found not in HONEST and found != read(patient / f"game{clip}"):
            wrong.append(clip)
    assert wrong == []
    patient.proxy.clear()
    assert [read(patient / (stem + clip)) for clip in CLIPS] == [read(patient / f"game{c}") for c in CLIPS]


def test_a_flipped_bit_in_a_small_object_is_seen(faulty: Bench) -> None:
    """An object of one part that is read whole has its MD5 for an etag."""
    small = BODY[:50_000]
    name = fresh(faulty, small, ".bin")
    faulty.proxy.fault(Rule("flip", kind="get", key=name, times=1))
    assert read(faulty / name) == small
    assert faulty.proxy.counts().faults["flip"] >= 1
    other = fresh(faulty, small, ".bin")
    faulty.proxy.fault(Rule("flip", kind="get", key=other))
    assert read(faulty / other) in HONEST


def test_a_copy_of_other_bytes_than_are_stored_fails(mounted: MountIt, tmp_path: Path) -> None:
    """Nothing tells that bytes of a part are others; but all together have not the checksum of the store."""
    body = random.Random(11).randbytes(10 << 20)
    objects = {"whole.bin": body, "part.bin": body}
    with r2_server(tmp_path / "r2") as server, bench(mounted, server, "sums", objects) as made:
        made.mount.expect_log(r"read whole\.bin: .* does not have the checksum|: mounted$")
        made.proxy.fault(Rule("shift-silently", kind="get", nth=(2,)))
        assert read(made / "whole.bin") == errno.EIO
        assert sum(made.proxy.counts().faults.values()) == 1
        # Neither the caches nor the kernel keep anything of it.
        eventually(lambda: read(made / "whole.bin") == body)
        made.proxy.clear()
        made.proxy.reset()
        server.option(sums=False)
        assert read(made / "part.bin") == body
        assert made.proxy.counts().requests["head"] <= 2


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("list", "503"), ("list", "hang"), ("list", "short body"), ("head", "503"), ("head", "reset")],
)
def test_names_that_could_not_be_asked_for_are_no_absence(faulty: Bench, kind: str, fault: str) -> None:
    """Neither "no such file" nor an empty folder; and the error is not remembered."""
    folder = f"folder{next(_number)}"
    faulty.put(f"{folder}/a.bin", b"a")
    faulty.proxy.fault(rule_with(PASSING[fault], kind=kind))
    if kind == "list":
        with pytest.raises(OSError) as failure:
            os.listdir(faulty / folder)
        assert failure.value.errno in HONEST
    assert read(faulty / folder / "a.bin") in HONEST
    if kind == "list":
        assert read(faulty / folder / "absent.bin") in HONEST
    faulty.proxy.clear()
    assert os.listdir(faulty / folder) == ["a.bin"]
    assert read(faulty / folder / "a.bin") == b"a"
    assert read(faulty / folder / "absent.bin") == errno.ENOENT


# -- a store that hangs or is gone -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lasting(mounting: MountIt, server: Server, game: bytes) -> Iterator[Bench]:
    """A mount with the deadline and the lifetimes of a user's."""
    objects = {"game.mp4": game, "cached.bin": BODY, "folder/a.bin": b"a", "folder/b.bin": b"b"}
    with bench(mounting, server, "lasting", objects, deadline="30s") as made:
        made.mount.expect_log(TROUBLE)
        yield made


def use(lasting: Bench) -> None:
    """What a user did before the store went away."""
    assert sorted(os.listdir(lasting.mount.path)) == ["cached.bin", "folder", "game.mp4", "search"]
    assert sorted(os.listdir(lasting / "folder")) == ["a.bin", "b.bin"]
    assert read(lasting / "cached.bin") == BODY
    assert isinstance(read(lasting / "game@0.5s-1.2s.mp4"), bytes)
    assert isinstance(read(lasting / "game@0.7s.jpg"), bytes)


@pytest.mark.parametrize("how", ["hang", pytest.param("down", marks=pytest.mark.slow)])
def test_what_is_cached_answers_while_the_store_does_not(lasting: Bench, how: str) -> None:
    """A1: listings, data, clips, frames and the status; and afterwards everything, without a remount."""
    use(lasting)
    clip, frame = read(lasting / "game@0.5s-1.2s.mp4"), read(lasting / "game@0.7s.jpg")
    if how == "down":
        lasting.proxy.down()
    else:
        lasting.proxy.fault(Rule("hang"))
    try:
        for _ in range(2):
            time.sleep(1.1)  # longer than attr_ttl: the next open would like to ask
            started_at = time.monotonic()
            assert sorted(os.listdir(lasting / "folder")) == ["a.bin", "b.bin"]
            assert lasting.status()["source"] == "s3://lasting"
            assert read_uncached(lasting / "cached.bin") == BODY
            assert read_uncached(lasting / "game@0.5s-1.2s.mp4") == clip
            assert read_uncached(lasting / "game@0.7s.jpg") == frame
            assert time.monotonic() - started_at < 5
    finally:
        lasting.proxy.up()
        lasting.proxy.clear()
    assert read(lasting / "folder/a.bin") == b"a"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize(
    ("command", "path"),
    [("cat", "unread{}.bin"), ("ls", "unlisted{}"), ("stat", "unlisted{}/x"), ("cat", "other{}@0.5s.jpg")],
)
def test_who_waits_for_a_hanging_store_can_be_ended(
    lasting: Bench, game: bytes, number: signal.Signals, command: str, path: str
) -> None:
    """Ctrl-C and kill -9 work at once, not when the store or the deadline says so."""
    mark = next(_number)
    for key, body in {"unread{}.bin": BODY, "unlisted{}/x": b"x", "other{}.mp4": game}.items():
        lasting.put(key.format(mark), body)
    lasting.proxy.reset()
    lasting.proxy.fault(Rule("hang"))
    try:
        with started([command, lasting / path.format(mark)]) as process:
            eventually(lambda: lasting.proxy.counts().total > 0)
            process.send_signal(number)
            _, seconds = timed(lambda: process.wait(20))
            assert seconds < SLACK
            assert process.returncode == -number
    finally:
        lasting.proxy.clear()
    assert read(lasting / f"unread{mark}.bin") == BODY


# -- replaced under the reader -----------------------------------------------------------------------------


def test_what_was_replaced_while_open_is_stale_or_old_never_mixed(patient: Bench) -> None:
    """C1, through a server that knows If-Match: the old bytes or ESTALE; opened again, the new ones."""
    old, new = b"old " * 500_000, b"new " * 500_000
    patient.put("replaced/big.bin", old)
    with open(patient / "replaced/big.bin", "rb", buffering=0) as file:
        assert file.read(4096) == old[:4096]
        patient.put("replaced/big.bin", new)
        seen = {read_part(file.fileno(), offset) for offset in range(0, len(old), 65536)}
    assert errno.ESTALE in seen
    # A read that fails in the middle is short: what came before it was there.
    assert all(old.startswith(part) for part in seen if isinstance(part, bytes))
    eventually(lambda: read(patient / "replaced/big.bin") == new)


def test_a_clip_of_what_was_replaced_is_the_old_one_or_stale(patient: Bench, game: bytes) -> None:
    """A game of the same name with other sound and pictures: never a clip with bytes of both."""
    other = game.replace(game[-20_000:-10_000], bytes(10_000))
    patient.put("again/clip.mp4", game)
    patient.put("again/other.mp4", other)
    names = [f"clip{clip}" for clip in CLIPS]
    before = {name: read(patient / "again" / name) for name in names}
    with ExitStack() as stack:
        patient.put("again/fresh.mp4", game)
        files = {
            name: stack.enter_context(open(patient / "again" / name.replace("clip", "fresh"), "rb"))
            for name in names
        }
        patient.put("again/fresh.mp4", other)
        for name, file in files.items():
            try:
                assert file.read() == before[name], name
            except OSError as error:
                assert error.errno == errno.ESTALE, name
    eventually(lambda: read(patient / "again/fresh.mp4") == other)
    for name in names:
        fresh_name, other_name = name.replace("clip", "fresh"), name.replace("clip", "other")
        assert read(patient / "again" / fresh_name) == read(patient / "again" / other_name), name


def read_part(descriptor: int, offset: int) -> bytes | int:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        return os.pread(descriptor, 65536, offset)
    except OSError as error:
        return error.errno or -1
