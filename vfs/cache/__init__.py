"""Caches: blocks of objects, listings, derived values; one memory budget, one disk budget."""
