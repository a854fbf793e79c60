"""`reelfs h4mk pack | inspect | verify | unpack`: containers as local files, with no mount."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vfs import Damaged, ReelfsError, in_trio
from vfs_h4mk import pack as packing

if TYPE_CHECKING:
    from vfs import Runtime

#: Bytes of a file given to a worker at one time.
FED = 1 << 20

T = TypeVar("T")

app = typer.Typer(add_completion=False, help="Pack, look into, check and unpack H4MK containers.")

File = Annotated[str, typer.Argument(metavar="FILE", help="A container: a path, or SOURCE/KEY of a store.")]
Out = Annotated[Path, typer.Option("--output", "-o", metavar="OUT", help="The file to write.")]


@app.command()
def pack(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="The file to pack: an MP4, or any other.")],
    output: Out,
    block_size: Annotated[
        int, typer.Option(metavar="BYTES", help="Bytes of a block, 65536 to 8388608.")
    ] = packing.USUAL_BLOCK,
    fps: Annotated[
        float | None,
        typer.Option(metavar="RATE", help="Seek entries as an export of the original: a block is a frame."),
    ] = None,
    gop: Annotated[int, typer.Option(metavar="BLOCKS", help="With --fps: blocks between seek entries.")] = 1,
) -> None:
    """Cut a file into blocks and write them as a container; its key frames become the seek table."""
    if not packing.LEAST_BLOCK <= block_size <= packing.MOST_BLOCK:
        raise ReelfsError(f"--block-size {block_size}: {packing.LEAST_BLOCK} to {packing.MOST_BLOCK} bytes")
    if gop < 1 or (fps is not None and not 0 < fps <= 1_000_000):
        raise ReelfsError("--gop and --fps are larger than 0 (and --fps at most 1000000)")
    meta = packing.export_meta(block_size, float(fps or 0), gop if fps else 0)
    with _opened(source) as data, _replacing(output) as out:
        writer = packing.Writer(out)
        for block in packing.blocks_of(data, block_size):
            writer.block(block)
        seeks = packing.export_seeks(writer.sizes, fps, gop) if fps else _key_frames(source)
        writer.finish(seeks, meta, packing.EXPORT_SAFE)
    print(f"{output}: {len(writer.sizes)} blocks, {sum(writer.sizes)} bytes, {len(seeks)} seek entries")


def _opened(path: Path) -> Any:
    try:
        return path.open("rb")
    except OSError as error:
        raise ReelfsError(f"{path}: {error.strerror}") from None


def _key_frames(path: Path) -> list[tuple[int, int]]:
    """None where it is no video: then there is nothing to seek to."""
    import trio

    from vfs import Source, in_worker
    from vfs_h4mk.keyframes import key_frames

    async def stream(offset: int, length: int) -> AsyncIterator[bytes]:
        """The file, to a process that may not open any."""
        async with await trio.open_file(path, "rb") as file:
            await file.seek(offset)
            while length > 0 and (piece := await file.read(min(length, FED))):
                length -= len(piece)
                yield piece

    async def ask() -> list[tuple[int, int]]:
        return await in_worker(key_frames, source=Source(stream, path.stat().st_size))

    try:
        return in_trio(ask)
    except Damaged:
        return []


class _replacing:
    """A file that appears under its name when it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        try:
            self._file = tempfile.NamedTemporaryFile(
                dir=self._path.parent or Path("."), prefix=f".{self._path.name}.", delete=False
            )
        except OSError as error:
            raise ReelfsError(f"{self._path}: {error.strerror}") from None
        return self._file

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._file.close()
        if kind is not None:
            os.unlink(self._file.name)
            return
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(self._file.name, 0o666 & ~umask)
        os.replace(self._file.name, self._path)


@app.command()
def inspect(file: File) -> None:
    """Print the manifest."""
    typer.echo(_document(file, "manifest.json"), nl=False)


@app.command()
def verify(file: File) -> None:
    """Check all that can be checked; exit 1 = invalid, 2 = nothing says what it should be."""
    import json

    text = _document(file, "verify.json")
    typer.echo(text, nl=False)
    status = json.loads(text)["status"]
    if status != "verified":
        raise typer.Exit(1 if status == "invalid" else 2)


@app.command()
def unpack(file: File, output: Out) -> None:
    """Write what was packed: all decoded blocks, joined."""
    from vfs import Spliced

    async def copy(runtime: Runtime, folder: str) -> int:
        found = await runtime.tree.resolve(folder)
        names = [name for name in await runtime.tree.entries(found) if name.startswith("payload.")]
        if not names:
            await runtime.tree.resolve(f"{folder}/payload.bin")  # says why
            raise ReelfsError(f"{file} has no payload")
        node = (await runtime.tree.resolve(f"{folder}/{names[0]}")).node
        assert isinstance(node, Spliced)
        with _replacing(output) as out:
            async for piece in runtime.reader.stream(node.layout):
                out.write(piece)
        return node.layout.size

    print(f"{output}: {_in_tree(file, copy)} bytes")


def _document(file: str, name: str) -> str:
    async def read(runtime: Runtime, folder: str) -> str:
        found = await runtime.tree.resolve(f"{folder}/{name}")
        return (await runtime.tree.settle(found)).decode("utf-8", "surrogateescape")

    return _in_tree(file, read)


def _in_tree(file: str, work: Callable[[Runtime, str], Awaitable[T]]) -> T:
    """`work(runtime, path of the container's directory)` with the container's folder as the source."""
    source, _, name = file.rpartition("/")
    if "://" not in file:
        source, name = os.path.split(os.path.abspath(file))
        if not os.path.isfile(file):
            raise ReelfsError(f"{file}: no such file")
    from vfs import Settings, open_runtime

    async def run() -> T:
        async with open_runtime(Settings.load({"source": source})) as runtime:
            return await work(runtime, name + "@")

    return in_trio(run)
