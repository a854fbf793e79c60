"""`hwaccel = "auto"`: without a device, with one that fails in all ways, nothing but speed is lost."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

sys.path[:0] = [str(Path(__file__).resolve().parent)]

import mp4_exact as exact  # noqa: E402
import worker_devices as devices  # noqa: E402
from mp4_places import MemoryPlace  # noqa: E402
from vfs_mp4 import decode, frames, hardware  # noqa: E402
from vfs_mp4.hardware import MOST_FAILURES, Hardware  # noqa: E402
from vfs_mp4.options import Options  # noqa: E402
from vfs_mp4.plugin import Videos  # noqa: E402
from vfs_mp4.ranges import Ranges  # noqa: E402
from vfs_mp4.selecting import window_of  # noqa: E402

from vfs import (  # noqa: E402
    Bytes,
    ConfigError,
    Damaged,
    DerivedObject,
    Extent,
    Settings,
    Spliced,
    open_runtime,
    parse_derived,
)
from vfs.pytest_plugin import ExpectedLogs  # noqa: E402
from vfs.runtime import Runtime  # noqa: E402
from vfs.workers import configure, in_worker, open_workers  # noqa: E402

# ---------------------------------------------------------------- a device, where there is one


@pytest.fixture
def no_device() -> None:
    """Skips where there is one."""

    async def main() -> str:
        async with open_workers():
            device, _ = await in_worker(decode.probe)
            return device

    if device := trio.run(main):
        pytest.skip(f"there is a device: {device}")


@pytest.fixture
def without_a_device(no_device: None, expected_logs: ExpectedLogs) -> None:
    """What is said of there being none is expected."""
    expected_logs("no device decodes")


@pytest.mark.usefixtures("without_a_device")
def test_without_a_device_software_decodes_and_says_so_once() -> None:
    place = exact.sample("h264")

    async def main() -> list[bytes]:
        async with open_workers():
            found: list[bytes] = []
            for view in (Videos(Hardware(wanted=True)), Videos()):
                for name in ("f3.npy", "f4.npy"):
                    node = await view.resolve(place, name)
                    assert isinstance(node, Bytes)
                    assert node.version is not None
                    assert ("hardware" in node.version) == (len(found) < 2)
                    found.append(await node.produce())
            return found

    found = trio.run(main)
    assert found[:2] == found[2:]


@pytest.mark.usefixtures("without_a_device")
def test_the_setting_of_a_mount_reaches_the_decoder(tmp_path: Path) -> None:
    """From the file of settings through the plugin to an isolated worker: found out once, and said."""
    place = exact.sample("h264")
    (tmp_path / "x.mp4").write_bytes(place.data)
    file = tmp_path / "config.toml"
    file.write_text('[plugin.mp4]\nhwaccel = "auto"\n')
    given = {"source": tmp_path.as_uri(), "cache_dir": "none"}
    names = ("x@f3.npy", "x.mp4@/keyframes/k0001@1.000s.jpg", "x@f3-f5.npy", "x@f4.png")

    async def main(settings: Settings) -> list[bytes]:
        async with open_runtime(settings) as runtime:
            return [await content_of(runtime, name) for name in names]

    plain = trio.run(main, Settings.load(given, environ={}))
    wanted = trio.run(main, Settings.load(given, config=file, environ={}))
    assert wanted == plain


async def content_of(runtime: Runtime, path: str) -> bytes:
    """A made file, whole."""
    found = await runtime.tree.resolve(path)
    if isinstance(found.node, Bytes):
        return await runtime.tree.settle(found)
    assert isinstance(found.node, Spliced)
    return await runtime.reader.fetch(found.node.layout)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('hwaccel = "cuda"', "hwaccel is off or auto, not 'cuda'"),
        ("hwacel = true", "unknown key hwacel"),
    ],
)
def test_a_wrong_setting_is_told_with_its_place(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[plugin.mp4]\n{text}\n")
    with pytest.raises(ConfigError, match=problem) as raised:
        Options.load(Settings.load(config=file, environ={}))
    assert str(file) in str(raised.value)


@pytest.mark.parametrize(("value", "wanted"), [("auto", True), ("off", False)])
def test_the_setting_is_read(tmp_path: Path, value: str, wanted: bool) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f'[plugin.mp4]\nhwaccel = "{value}"\n')
    assert Options.load(Settings.load(config=file, environ={})).hwaccel is wanted
    assert not Options.load(Settings()).hwaccel


# ---------------------------------------------------------------- a device that fails


@pytest.fixture
def one_worker() -> Iterator[None]:
    """One that is told to have a device is the one that decodes."""
    configure(processes=1)
    yield
    configure(processes=2, deadline=20.0)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch, no_device: None, one_worker: None) -> None:
    """A device was found, and is not there any more: opening it fails in earnest."""

    async def found() -> str:
        return "cuda"

    monkeypatch.setattr(hardware, "_found", found)


@asynccontextmanager
async def device(kind: str, after: int = 0) -> AsyncIterator[None]:
    """A worker with a device that fails so. kind: see `worker_devices.put_in`; "gone" = as it is."""
    async with open_workers():
        if kind != "gone":
            await in_worker(devices.put_in, kind, after)
        yield


async def made(place: MemoryPlace, name: str, wanted: Hardware | None = None) -> bytes:
    """A frame, an array or an animation."""
    derived = parse_derived(name)
    assert derived is not None
    view = Ranges(wanted) if derived.selection.is_range else Videos(wanted)
    node = await view.resolve(place, name)
    if isinstance(node, Bytes):
        return await node.produce()
    assert isinstance(node, Spliced)
    body = node.layout.spans[-1]
    assert isinstance(body, Extent)
    assert isinstance(body.object, DerivedObject)
    return await body.object.make(0, body.object.size)


NAMES = ("f3.npy", "f40.jpg", "f41.png", "f10-f20.npy", "f20-f30.gif")


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    ("kind", "after"),
    [
        ("gone", 0),
        ("errors", 2),
        pytest.param("silent", 3, marks=pytest.mark.slow),
        ("dies", 1),
        pytest.param("hangs", 1, marks=pytest.mark.slow),
        pytest.param("errors", 0, marks=pytest.mark.slow),
    ],
)
def test_what_a_device_fails_on_software_decodes(
    expected_logs: ExpectedLogs, caplog: pytest.LogCaptureFixture, kind: str, after: int
) -> None:
    """The same bytes, whatever happens in the middle of a stream, and one line for each codec."""
    if kind == "hangs":
        configure(deadline=3.0)
        expected_logs("overran its deadline")
    elif kind == "dies":
        expected_logs("the worker of .* died")
    wanted = Hardware(wanted=True)
    places = [exact.sample("h264"), exact.sample("hevc_open_gop_fragmented")]
    for codec in ("h264", "hevc"):
        expected_logs(f"^{codec} was decoded in software after the device failed")

    async def main() -> list[list[bytes]]:
        found = []
        for place in places:
            async with device(kind, after):
                found.append([await made(place, name, wanted) for name in NAMES])
        return found

    async def plain() -> list[list[bytes]]:
        async with open_workers():
            return [[await made(place, name) for name in NAMES] for place in places]

    assert trio.run(main) == trio.run(plain)
    assert sum("was decoded in software" in text for text in caplog.messages) == len(places)


@pytest.mark.usefixtures("cuda")
def test_a_device_that_goes_on_failing_is_not_asked_any_more(expected_logs: ExpectedLogs) -> None:
    """Of that codec alone; and one that works in between is asked on."""
    expected_logs("^h264 was decoded in software")
    place, other = exact.sample("h264"), exact.sample("hevc_open_gop_fragmented")

    async def main() -> list[int]:
        asked, wanted = [], Hardware(wanted=True)
        numbers = iter(range(20))

        async def pictures(count: int, of: MemoryPlace = place) -> None:
            """Each of a file of its own: what was decoded is kept."""
            for _ in range(count):
                await made(MemoryPlace(of.data, f"games/{next(numbers)}.mp4"), "f3.npy", wanted)

        async with device("errors", 0):
            await pictures(MOST_FAILURES - 1)
            await in_worker(devices.put_in, "works", 0)
            await pictures(1)
            asked.append(await in_worker(devices.asked))
            await in_worker(devices.put_in, "errors", 0)
            await pictures(MOST_FAILURES + 1)
            asked.append(await in_worker(devices.asked))
            await in_worker(devices.put_in, "works", 0)
            await pictures(1)
            await pictures(1, other)
            asked.append(await in_worker(devices.asked))
        return asked

    assert trio.run(main) == [1, MOST_FAILURES, 1]


@pytest.mark.usefixtures("cuda")
def test_a_damaged_file_is_not_the_fault_of_the_device(caplog: pytest.LogCaptureFixture) -> None:
    """Software says what is wrong, and nothing is said of the device."""
    place = exact.sample("h264")

    async def main() -> None:
        derived = parse_derived("f3.npy")
        assert derived is not None
        layout, _ = frames.coded(await window_of(place, derived.selection, exact_end=False), spare=20)
        data = bytearray(place.data)
        for span in layout.spans:
            assert isinstance(span, Extent)
            data[span.offset : span.end] = bytes(span.length)
        damaged, wanted = MemoryPlace(bytes(data), "games/damaged.mp4"), Hardware(wanted=True)
        async with device("errors", 0):
            for _ in range(MOST_FAILURES + 1):
                with pytest.raises(Damaged, match="the decoder puts nothing out"):
                    await made(damaged, "f3.npy", wanted)
            assert await in_worker(devices.asked) == MOST_FAILURES + 1

    trio.run(main)
    assert not [text for text in caplog.messages if "was decoded in software" in text]


@pytest.mark.usefixtures("one_worker")
def test_a_driver_that_takes_its_process_with_it_is_no_device(expected_logs: ExpectedLogs) -> None:
    """Looking for a device is no more than looking: frames come out in software."""
    expected_logs("the worker of .* died")
    expected_logs("no device decodes, software does .*the process died")
    place = exact.sample("h264")

    async def main() -> tuple[bytes, bytes]:
        async with open_workers():
            await in_worker(devices.crash_probe)
            return await made(place, "f3.npy", Hardware(wanted=True)), await made(place, "f3.npy")

    with_it, without = trio.run(main)
    assert with_it == without
