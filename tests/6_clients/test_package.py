"""What is in the wheel and the source archive, and that the wheel works where nothing else of ours is."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built from a copy of the checkout."""
    folder = tmp_path_factory.mktemp("package")
    copy = folder / "copy"
    left_out = shutil.ignore_patterns(
        ".venv", ".git", "node_modules", "__pycache__", ".*_cache", ".hypothesis"
    )
    shutil.copytree(ROOT, copy, ignore=left_out)
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder / "dist")],
        cwd=copy,
        check=True,
        capture_output=True,
    )
    return folder / "dist"


def test_the_wheel_has_plugins_units_and_pages(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for wanted in (
        "vfs/cli.py",
        "vfs/py.typed",
        "vfs_mp4/plugin.py",
        "vfs_h4mk/plugin.py",
        "vfs_control/plugin.py",
        "vfs_search/plugin.py",
    ):
        assert wanted in names
    assert {"vfs/_systemd/reelfs@.service", "vfs/_systemd/user/reelfs@.service"} <= names
    assert any(name.endswith("share/man/man1/reelfs.1") for name in names)
    assert any(name.endswith("share/man/man8/mount.reelfs.8") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "plugins/"))]


def test_the_source_archive_has_what_building_and_testing_needs(built: Path) -> None:
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    for wanted in (
        *("pyproject.toml", "README.md", "CHANGELOG.md", "requirements.lock", "systemd/reelfs@.service"),
        *("man/reelfs.1", "container/Containerfile", "docs/index.md", "tests/conftest.py", "scripts/setup"),
        *(".dockerignore", "mkdocs.yml", "scripts/audit", "requirements-audit.lock"),
    ):
        assert wanted in names


def test_the_wheel_works_by_itself(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("*.whl")
    venv.create(tmp_path / "fresh", with_pip=False)
    python = tmp_path / "fresh" / "bin" / "python"
    site = next((tmp_path / "fresh").glob("lib/python3*/site-packages"))
    # Dependencies are those of this environment, without its .pth files: our checkout is not seen.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    installing = ("-m", "pip", "install", "-q", "--no-index", "--no-deps", "--ignore-installed")
    subprocess.run([str(python), *installing, str(wheel)], check=True, env=environ, timeout=100)
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "a.txt").write_text("stored\n")
    reelfs = tmp_path / "fresh" / "bin" / "reelfs"

    def run(*words: str) -> str:
        done = subprocess.run(
            [str(reelfs), *words], capture_output=True, text=True, env=environ, cwd=tmp_path, check=True
        )
        return done.stdout

    assert run("cat", "library", "a.txt") == "stored\n"
    assert "Type=notify" in run("service", "show")
    where = subprocess.run(
        [str(python), "-c", "import vfs; print(vfs.__file__)"],
        capture_output=True,
        text=True,
        env=environ,
        cwd=tmp_path,
    )
    assert where.stdout.startswith(str(tmp_path))


PACKAGE: dict[str, Any] = {"name": "rich", "version": "1.0", "vulns": []}
BAD = PACKAGE | {"vulns": [{"id": "CVE-1", "fix_versions": ["1.1"]}]}
UNKNOWN = {"name": "trio", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "said", "code", "shown"),
    [
        ([PACKAGE], "", 0, ["audit: 1 packages asked about, 0 vulnerabilities known"]),
        (
            [BAD, PACKAGE],
            "",
            1,
            ["audit: rich 1.0: CVE-1: mended in 1.1", "audit: 2 packages asked about, 1 "],
        ),
        (
            [PACKAGE, UNKNOWN],
            "",
            0,
            ["audit: trio: not asked: not found", "audit: 1 packages asked about, 0 "],
        ),
        ([UNKNOWN], "", 0, ["audit: skipped: the package index here tells nothing of vulnerabilities"]),
        (None, "Traceback\nno network\n", 0, ["audit: skipped: no answer about vulnerabilities: no network"]),
    ],
)
def test_an_audit_tells_what_is_wrong_from_what_could_not_be_asked(
    packages: list[dict[str, Any]] | None, said: str, code: int, shown: list[str], tmp_path: Path
) -> None:
    report, stderr = tmp_path / "report.json", tmp_path / "said"
    report.write_text("" if packages is None else json.dumps({"dependencies": packages}))
    stderr.write_text(said)
    command = [sys.executable, str(ROOT / "scripts/audit_verdict.py"), str(report), str(stderr)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(shown)
    assert all(line.startswith(wanted) for line, wanted in zip(lines, shown, strict=True))


def test_the_container_copies_what_there_is_and_runs_as_nobody_special() -> None:
    text = (ROOT / "container" / "Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.*)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source}\n" in (ROOT / ".dockerignore").read_text(), source
    assert re.search(r"^USER reelfs$", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "reelfs" in project["project"]["scripts"]
