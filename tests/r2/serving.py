"""The server of `tests/r2server.py`: connections, faults, the log, and its own questions."""

from __future__ import annotations

import argparse
import contextlib
import json
import select
import socket
import socketserver
import sys
import time
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import unquote

from tests.r2.answers import dumped, error
from tests.r2.faults import Entry, Fault, Ledger
from tests.r2.operations import Service
from tests.r2.state import State
from tests.r2.wire import Answer, Gone, Refusal, Request, read_request, reset, send, size_of

OWN = "_r2"
#: Seconds between two looks whether the client of a request that hangs is still there.
GLANCE = 0.05


class R2Server(socketserver.ThreadingTCPServer):
    """The server in this process."""

    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, port: int) -> None:
        self.service = Service(State(folder))
        self.ledger = Ledger()
        self.began = time.monotonic()
        super().__init__(("127.0.0.1", port), Connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that leaves is no error; anything else is told."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class Connection(socketserver.BaseRequestHandler):
    """The requests of one connection, one after the other. `Expect: 100-continue` is met with silence."""

    server: R2Server
    request: socket.socket

    def handle(self) -> None:
        """Until the client leaves, or is thrown out."""
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self.request.makefile("rb", buffering=1 << 16) as reader, contextlib.suppress(Gone):
            while (request := read_request(cast(BinaryIO, reader))) is not None:
                if request.bucket == OWN:
                    send(self.request, self._own(request), without_body=False)
                else:
                    self._serve(request)
                if request.headers.get("connection", "").lower() == "close":
                    return

    def _serve(self, request: Request) -> None:
        service, ledger = self.server.service, self.server.ledger
        operation, key = service.operation(request), unquote(request.raw_key)
        fault = ledger.strikes(operation, key)
        status, sent = 0, 0
        try:
            if fault is None or fault.done:
                answer = self._answer(operation, request)
            if fault is not None:
                answer = self._spoilt(fault, request)
            request.skip()
            status, sent = answer.status, 0 if request.method == "HEAD" else size_of(answer)
        finally:
            # Before the answer: whoever has one finds its request in the log.
            at = time.monotonic() - self.server.began
            ledger.note(Entry(operation, request.bucket, key, status, request.received, sent, at))
        try:
            send(self.request, answer, without_body=request.method == "HEAD")
        except FileNotFoundError:  # replaced before it was opened
            refusal = Refusal(500, "InternalError", "We encountered an internal error.", 10001)
            send(self.request, error(refusal, request), without_body=False)

    def _answer(self, operation: str, request: Request) -> Answer:
        try:
            return self.server.service.answer(operation, request)
        except Refusal as refusal:
            return error(refusal, request)

    def _spoilt(self, fault: Fault, request: Request) -> Answer:
        """What a fault makes of a request: another answer, or none (raises Gone)."""
        if fault.kind == "status":
            request.skip()
            told = error(Refusal(fault.status, fault.code, "It was told to say so."), request)
            later = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return Answer(fault.status, dict(told.headers) | later, told.body)
        if fault.kind == "hang":
            request.skip()
            until = time.monotonic() + (fault.seconds or float("inf"))
            while not self.server.ledger.healed.wait(GLANCE) and time.monotonic() < until:
                if select.select([self.request], [], [], 0)[0] and not self.request.recv(1, socket.MSG_PEEK):
                    break
        else:
            request.skip(fault.after)
        reset(self.request)
        raise Gone

    def _own(self, request: Request) -> Answer:
        ledger, told = self.server.ledger, json.loads(request.told() or b"{}")
        match request.method, request.raw_key:
            case "GET", "log":
                return dumped(ledger.log())
            case "DELETE", "log":
                ledger.forget()
            case "POST", "faults":
                ledger.add(told)
            case "DELETE", "faults":
                ledger.heal()
            case "POST", "options":
                self.server.service.options.update(told)
            case _:
                return Answer(404)
        return dumped("done")


def main() -> None:
    """Serve until a signal."""
    parser = argparse.ArgumentParser(description="An S3 server that behaves as R2 does.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--bucket", help="made if it is not there")
    parser.add_argument("--rate", action="store_true", help="at most one write a second and key")
    given = parser.parse_args()
    with R2Server(given.folder, given.port) as server:
        server.service.options["rate"] = given.rate
        if given.bucket:
            server.service.state.make_bucket(given.bucket)
        server.serve_forever()
