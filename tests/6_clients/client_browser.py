"""Players of web pages in a headless Chromium, and the plain static HTTP server that they read from."""

from __future__ import annotations

import base64
import contextlib
import http.server
import io
import mimetypes
import os
import re
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import numpy as np
import pytest
from client_mounts import ROOT
from client_players import Heard, Picture, as_gray
from PIL import Image
from selenium import webdriver

WEB = ROOT / "tests" / "6_clients" / "web"
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
#: scripts/setup --dev installs all of it: where CI lacks it, the tests fail.
MISSING = not (CHROMIUM and DRIVER and (WEB / "node_modules").is_dir())
needs_browser = pytest.mark.skipif(
    MISSING and not os.environ.get("CI"),
    reason="needs chromium, chromedriver and the players of tests/6_clients/web (scripts/setup --dev)",
)
#: Nothing but pages of this machine is asked for, and pages may play sound by themselves.
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
#: Seconds that one step of a page may take: more than its own, after which it says what stands still.
PATIENCE = 40


# ---------------------------------------------------------------- the server


@dataclass(frozen=True)
class Site:
    """A folder at `url`/media/. answers: (path, status) of all that was asked for there."""

    url: str
    answers: list[tuple[str, int]] = field(default_factory=list)

    def refused(self) -> list[tuple[str, int]]:
        """What was answered with neither the file nor the range that was asked for."""
        return [(path, status) for path, status in self.answers if status not in (200, 206)]


class _Handler(http.server.BaseHTTPRequestHandler):
    """GET of files, whole or one range of bytes (RFC 9110, 14). Knows nothing of video."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # A page that was left.
            super().handle()

    def do_GET(self) -> None:
        where, _, name = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        folder = {"page": WEB, "media": self.server.folder}.get(where)
        if folder is None or ".." in name.split("/") or not (folder / name).is_file():
            self._answer(404, {"Content-Length": "0"})
        else:
            self._file(folder / name)

    def _file(self, path: Path) -> None:
        size = path.stat().st_size
        start, stop, status = 0, size, 200
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if found:
            start, stop, status = int(found[1]), min(int(found[2] or size) + 1, size), 206
        if found and start >= stop:
            return self._answer(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
        headers = {"Content-Type": mimetypes.guess_type(path.name)[0] or "application/octet-stream"}
        headers |= {"Content-Length": str(stop - start), "Accept-Ranges": "bytes"}
        headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}"} if found else {}
        self._answer(status, headers)
        with path.open("rb") as file:
            file.seek(start)
            while start < stop and (data := file.read(min(stop - start, 1 << 18))):
                self.wfile.write(data)
                start += len(data)
        return None

    def _answer(self, status: int, headers: Mapping[str, str]) -> None:
        if self.path.startswith("/media/"):
            self.server.answers.append((self.path, status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Not on standard error: `Site.answers` has it."""


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: list[tuple[str, int]] = []
        super().__init__(("127.0.0.1", 0), _Handler)


@contextmanager
def served(folder: Path) -> Iterator[Site]:
    """A static server of `folder` on a loopback port."""
    with _Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Site(f"http://127.0.0.1:{server.server_port}", server.answers)
        finally:
            server.shutdown()
            thread.join()


# ---------------------------------------------------------------- the browser


@dataclass(frozen=True)
class Page:
    """The page `web/page.html` in the browser; what it answers is in `web/page.js`."""

    driver: webdriver.Chrome
    site: Site

    def open(self, player: str, path: str, start: float = 0) -> tuple[dict[str, Any], Picture]:
        """Load the page anew and open `path` of the served folder in a player: as `seek`."""
        self.driver.get(f"{self.site.url}/page/page.html")
        return _shown(self.ask("open", player, f"/media/{quote(path)}", start))

    def try_to_open(self, player: str, path: str) -> list[str]:
        """As `open`, of what is not expected to play: what was complained of."""
        self.driver.get(f"{self.site.url}/page/page.html")
        troubles: list[str] = self.ask("open", player, f"/media/{quote(path)}", 0)["troubles"]
        return troubles

    def seek(self, time: float) -> tuple[dict[str, Any], Picture]:
        """Seek by a second or more: the state, and the picture that is shown then."""
        return _shown(self.ask("seek", time))

    def play(self, seconds: float) -> tuple[dict[str, Any], Heard, float]:
        """Play that long, or to the end: the state, the last sound, and the time of the clip it began at."""
        state = self.ask("play", seconds)
        samples = np.array(state.pop("samples"), np.float64)
        heard = Heard(samples)
        return state, heard, state["currentTime"] - heard.length

    def ask(self, function: str, *arguments: Any) -> dict[str, Any]:
        """What a function of the page gives."""
        script = (
            "const done = arguments[arguments.length - 1];"
            f"{function}(...Array.from(arguments).slice(0, -1)).then(done, (e) => done({{failed: `${{e}}`}}))"
        )
        told: dict[str, Any] = self.driver.execute_async_script(script, *arguments)
        assert "failed" not in told, told
        return told

    def screenshot(self, path: Path) -> None:
        """The page as it looks, as a PNG."""
        path.write_bytes(self.driver.get_screenshot_as_png())


def _shown(state: dict[str, Any]) -> tuple[dict[str, Any], Picture]:
    picture = base64.b64decode(state.pop("picture").partition(",")[2])
    assert picture, state
    return state, as_gray(Image.open(io.BytesIO(picture)))


@contextmanager
def chromium(profile: Path) -> Iterator[webdriver.Chrome]:
    """A Chromium with a profile of its own, ended with all its processes."""
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or "chromium"
    for flag in (*FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER or "chromedriver"))
    try:
        driver.set_script_timeout(PATIENCE)
        driver.set_page_load_timeout(PATIENCE)
        yield driver
    finally:
        driver.quit()
