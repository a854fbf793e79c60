"""Writing: what is changed on a mount is staged and journalled on the local disk, then sent to the store.

`attributes` and `staging` are what a changed file is, `journal` is what survives a crash, `pending` the names
that differ from the store's, `merged` both seen as one, `drive` the operations, `uploader` sends.
"""
