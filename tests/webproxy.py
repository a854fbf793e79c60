"""A forward proxy for HTTP and HTTPS as a process: `python tests/webproxy.py PORT NAME=HOST:PORT ...`.

Only the names it is given can be reached, through it alone: they are in no name service. It writes a line for
each request, `GET http://NAME/...` or `CONNECT NAME:PORT`, to standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from urllib.parse import urlsplit

Names = dict[str, tuple[str, int]]


async def serve(port: int, names: Names) -> None:
    """Until it is ended."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                if not await one(line, reader, writer, names):
                    break
        writer.close()

    async with await asyncio.start_server(handle, "127.0.0.1", port) as server:
        await server.serve_forever()


async def one(line: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, names: Names) -> bool:
    """One request; whether another may follow on this connection."""
    method, target, version = line.decode("latin-1").split()
    print(method, target, flush=True)
    while method == "CONNECT" and (await reader.readline()).strip():
        pass  # its headers, of which there may be none
    where = target.rpartition(":")[0] if method == "CONNECT" else urlsplit(target).hostname or ""
    if where not in names:
        writer.write(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
        return False
    there, back = await asyncio.open_connection(*names[where])
    if method == "CONNECT":
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    else:  # a request for the server itself; the connection serves this one alone
        parts = urlsplit(target)
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        back.write(f"{method} {path or '/'} {version}\r\nConnection: close\r\n".encode("latin-1"))
    await asyncio.gather(copied(reader, back), copied(there, writer))
    return False


async def copied(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
    """Bytes from one side to the other, up to its end."""
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            to.write(data)
            await to.drain()
    with contextlib.suppress(OSError, RuntimeError):
        to.close()


if __name__ == "__main__":
    given = {}
    for word in sys.argv[2:]:
        name, _, where = word.partition("=")
        host, _, its_port = where.rpartition(":")
        given[name] = (host, int(its_port))
    asyncio.run(serve(int(sys.argv[1]), given))
