"""Fixtures for tests of reelfs and of its plugins, loaded by pytest through the entry point `pytest11`."""
