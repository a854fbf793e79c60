"""A mount that is killed in the middle, from outside and at steps of its own: what `cp` had done is there."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

from tests.writes import END_SECONDS, written

BODIES = {f"{number}.bin": random.Random(number).randbytes(70_000 * number + 1) for number in range(6)}


@pytest.mark.fuse
@pytest.mark.parametrize(
    "point",
    [
        "before-sync:3",
        "in-commit:9",
        "sent:3",
        *(
            pytest.param(point, marks=pytest.mark.slow)
            for point in ("after-sync:4", "after-commit:12", "put:2", "settled:2")
        ),
    ],
)
def test_what_was_copied_is_there_after_a_kill(point: str, tmp_path: Path) -> None:
    source, files = tmp_path / "source", tmp_path / "files"
    source.mkdir()
    files.mkdir()
    for name, body in BODIES.items():
        (files / name).write_bytes(body)
    with written(tmp_path / "m", str(source), {}, "write.delay=0s") as mount:
        mount.expect_log("kept as .* \\(recovered ")
        mount.unmount()
        mount.environ = {"VFS_FAULT_POINT": point}
        mount.start()
        copied = []
        for name in BODIES:
            done = subprocess.run(["cp", str(files / name), str(mount / name)], capture_output=True)
            if done.returncode == 0:
                copied.append(name)
        assert mount.process is not None
        assert mount.process.wait(END_SECONDS) == -signal.SIGKILL
        mount.process = None
        subprocess.run(["fusermount3", "-u", "-z", str(mount.path)], check=True)
        for path in source.iterdir():
            if path.is_file():
                assert path.read_bytes() == BODIES[path.name]  # nothing torn
        mount.environ = {}
        mount.start()
        for name in copied:
            assert (mount / name).read_bytes() == BODIES[name]
        mount.unmount()
    found = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    assert {name: BODIES[name] for name in copied} == {name: found[name] for name in copied}
    for name, body in found.items():
        whole = BODIES.get(name)
        assert body == whole or " (recovered " in name
    staged = [path for path in (tmp_path / "m" / "writes").rglob("*") if path.name.isdigit()]
    assert [path for path in staged if os.path.isfile(path)] == []
