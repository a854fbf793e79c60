"""Caches: blocks of objects, listings, derived values; one memory budget, one disk budget.

`metadata` keeps listings. `budget` bounds the memory of what is kept; `intervals` and `shared` are the two
mechanisms below `blocks` (exact segments of object versions, one fetch per byte), `disk` and `derived`.
"""
