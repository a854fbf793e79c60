"""For tests of stores and plugins: contracts to inherit from, and a store in memory. Public.

A store is right when this passes (pytest and hypothesis have to be installed)::

    class TestMyStore(vfs.testing.StoreContract):
        @asynccontextmanager
        async def store(self, objects):
            yield MyStore(...)            # holding exactly these objects

        async def replace(self, store, key, body):
            ...                           # what another program would do

A view of a plugin is right when this passes::

    class TestMyView(vfs.testing.ViewContract):
        objects = {"a.txt": b"...", "notes/b.txt": b"..."}
        names = {"a.txt": ["upper.txt"]}  # names that resolve and need not be listed

        def views(self):
            return [MyView()]
"""

from vfs.storage.memory import MemoryStore
from vfs.testing.storecase import ODD_KEYS
from vfs.testing.stores import StoreContract
from vfs.testing.views import ViewContract, ViewsPlugin

__all__ = ["ODD_KEYS", "MemoryStore", "StoreContract", "ViewContract", "ViewsPlugin"]
