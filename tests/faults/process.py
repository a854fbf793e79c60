"""The proxy as a process of its own, so that it takes no time from the process that is measured.

    with ProxyProcess(server.url, delay=0.04, bandwidth=25e6) as proxy:
        ... proxy.url, proxy.fault(Rule(...)), proxy.counts() ...

By hand: `python -m tests.faults.process --target http://127.0.0.1:9000 --delay 0.04 --bandwidth 25e6` prints
its URL, and takes one command a line, as JSON: `{"call": "counts"}`. It ends with its standard input.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.faults.proxy import Proxy
from tests.faults.rules import Counts, Logged, Rule

ROOT = Path(__file__).resolve().parents[2]


class ProxyProcess:
    """Everything `Proxy` can do, from another process."""

    def __init__(
        self,
        target: str,
        *,
        delay: float = 0.0,
        bandwidth: float | None = None,
        handshakes: int = 0,
        seed: int = 0,
        answers_continue: bool = True,
    ) -> None:
        command = [sys.executable, "-m", "tests.faults.process", "--target", target]
        command += ["--delay", str(delay), "--handshakes", str(handshakes), "--seed", str(seed)]
        command += ["--bandwidth", str(bandwidth)] if bandwidth else []
        command += [] if answers_continue else ["--silent-on-continue"]
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.url = str(self._answer()["url"])

    @property
    def pid(self) -> int:
        """Of the process, to measure what it takes."""
        return self._process.pid

    def fault(self, rule: Rule) -> None:
        """One more rule."""
        self._call("fault", rule=rule.to_dict())

    def clear(self) -> None:
        """No faults any more; hanging requests are let go."""
        self._call("clear")

    def shape(self, *, delay: float = 0.0, bandwidth: float | None = None) -> None:
        """Another round trip time and bandwidth."""
        self._call("shape", delay=delay, bandwidth=bandwidth)

    def counts(self) -> Counts:
        """Since the start or `reset`."""
        return Counts(**self._call("counts"))

    def log(self) -> list[Logged]:
        """Every request since the start or `reset`."""
        return [Logged(**entry) for entry in self._call("log")]

    def reset(self) -> None:
        """Count from zero."""
        self._call("reset")

    def release(self) -> None:
        """Let every hanging request go."""
        self._call("release")

    def down(self) -> None:
        """The server is gone."""
        self._call("down")

    def up(self) -> None:
        """The server is there again."""
        self._call("up")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()

    def __enter__(self) -> ProxyProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, name: str, **arguments: Any) -> Any:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"call": name, **arguments}) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the proxy's process has ended")
        return json.loads(line)


def _obey(proxy: Proxy, call: str, arguments: dict[str, Any]) -> Any:
    """One command."""
    if call == "fault":
        return proxy.fault(Rule.from_dict(arguments["rule"]))
    if call == "counts":
        return asdict(proxy.counts())
    if call == "log":
        return [asdict(entry) for entry in proxy.log()]
    if call == "shape":
        return proxy.shape(**arguments)
    if call not in ("clear", "reset", "release", "down", "up"):
        raise ValueError(f"no such command: {call}")
    return getattr(proxy, call)()


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--target", required=True, help="URL of the server")
    parser.add_argument("--delay", type=float, default=0.0, help="round trip time, seconds")
    parser.add_argument("--bandwidth", type=float, help="bytes a second, of all connections together")
    parser.add_argument("--handshakes", type=int, default=0, help="round trips to connect")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--silent-on-continue", action="store_true", help="as R2")
    given = parser.parse_args()
    with Proxy(
        given.target,
        delay=given.delay,
        bandwidth=given.bandwidth,
        handshakes=given.handshakes,
        seed=given.seed,
        port=given.port,
        answers_continue=not given.silent_on_continue,
    ) as proxy:
        print(json.dumps({"url": proxy.url}), flush=True)
        for line in sys.stdin:
            command = json.loads(line)
            print(json.dumps(_obey(proxy, command.pop("call"), command)), flush=True)
        sys.stdout.flush()
        proxy.down()
        os._exit(0)  # whoever started this is gone or does not care how connections end


if __name__ == "__main__":
    main()
