"""Searching the library by path: `search/text/`, `search/frame/`, `search/clip/`."""
