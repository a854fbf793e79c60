"""Stores: where the objects are. `base.Store` is the protocol; everything else implements or wraps it."""
