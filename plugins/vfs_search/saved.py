"""Questions that are kept, as small files of the library: all who mount it see them.

`NAME.query` below `.reelfs-search/`, with the question as its text. Where the mount may not write there
(`write.allow`), in a folder of this machine instead; what lies there is asked for, too.
"""

from __future__ import annotations

from pathlib import Path

from vfs import Malformed, NameTooLong, NotFound, Place, SmallFiles, TooBig, in_thread
from vfs_search.local import NAME_MAX, checked, put_in_place

#: Where they are in the library, and how their names end there.
FOLDER, SUFFIX = ".reelfs-search", ".query"
#: Questions, and bytes of one.
MOST, MAX_BYTES = 1000, 4096


class Saved:
    """Questions by name. folder: on this machine. files: what may be written of the library, if anything."""

    def __init__(self, folder: Path, files: SmallFiles | None = None) -> None:
        self._folder, self._files = folder, files

    async def names(self, root: Place) -> list[str]:
        """Of all questions. Raises StoreError."""
        stored = await self._stored(root)
        return sorted({*stored, *await in_thread(self._local)})

    async def query(self, root: Place, name: str) -> str | None:
        """The question of that name; None when there is none. Raises StoreError."""
        data = await self._read(root, checked(name))
        if data is None:
            return None
        lines = data.decode("utf-8", "replace").strip().splitlines()
        return lines[0] if lines else ""

    async def make(self, root: Place, name: str) -> None:
        """A new one, which asks for its name. Raises Malformed, TooBig, StoreError."""
        if name.startswith("."):
            raise Malformed(f"{name}: not a name for a question")
        if len(f"{name}{SUFFIX}".encode("utf-8", "surrogateescape")) > NAME_MAX:
            raise NameTooLong(f"{name}: too long for a file {SUFFIX} of that name")
        if len(await self.names(root)) >= MOST:
            raise TooBig(f"there are {MOST} saved questions; remove some")
        await self._write(checked(name), f"text/{name}\n".encode("utf-8", "surrogateescape"))

    async def write(self, root: Place, name: str, file: Path) -> None:
        """The text of a question. Raises NotFound, Malformed, StoreError."""
        if await self._read(root, checked(name)) is None:
            raise NotFound(f"no such question: {name}")
        if file.stat().st_size > MAX_BYTES:
            raise Malformed(f"a question has at most {MAX_BYTES} bytes")
        data = file.read_bytes()
        try:
            data.decode("utf-8")
        except UnicodeDecodeError:
            raise Malformed("a question is text") from None
        await self._write(name, data)

    async def remove(self, root: Place, name: str) -> None:
        """Raises NotFound, StoreError."""
        path, gone = self._path(checked(name)), False
        if path.is_file():
            path.unlink()
            gone = True
        if name in await self._stored(root):
            if self._files is None:
                raise NotFound(f"{name} is kept in the library, which is read-only")
            await self._files.remove(_key(name))
            gone = True
        if not gone:
            raise NotFound(f"no such question: {name}")

    # -- the library --------------------------------------------------------------------------------------

    async def _stored(self, root: Place) -> dict[str, Place]:
        try:
            folder = await root.find(FOLDER)
        except NotFound:
            return {}
        if folder is None or not folder.is_folder:
            return {}
        children = (await folder.children()).items()
        return {
            name.removesuffix(SUFFIX): place
            for name, place in children
            if name.endswith(SUFFIX) and name != SUFFIX and not place.is_folder
        }

    async def _read(self, root: Place, name: str) -> bytes | None:
        place = (await self._stored(root)).get(name)
        if place is not None:
            return await place.read(0, min(place.size, MAX_BYTES))
        path = self._path(name)
        return path.read_bytes()[:MAX_BYTES] if path.is_file() else None

    async def _write(self, name: str, data: bytes) -> None:
        if self._files is not None and self._files.allows(_key(name)):
            await self._files.put(_key(name), data)
        else:
            await in_thread(self._keep, name, data)

    # -- this machine -------------------------------------------------------------------------------------

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{SUFFIX}"

    def _local(self) -> list[str]:
        return [path.name.removesuffix(SUFFIX) for path in self._folder.glob(f"[!.]*{SUFFIX}")]

    def _keep(self, name: str, data: bytes) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with put_in_place(self._path(name)) as part:
            part.write(data)


def _key(name: str) -> str:
    return f"{FOLDER}/{name}{SUFFIX}"
