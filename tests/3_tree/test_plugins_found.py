"""Finding, blocking and reporting plugins."""

from __future__ import annotations

import pytest
import trio

import vfs
from vfs.config import Settings
from vfs.control import Call
from vfs.plugins import load_plugins
from vfs.pytest_plugin import ExpectedLogs
from vfs.runtime import open_runtime
from vfs.telemetry import Status
from vfs.testing import MemoryStore


class Fine:
    """A plugin with one view."""

    @vfs.hookimpl
    def vfs_views(self, settings: Settings) -> list[vfs.View]:
        return [vfs_view()]


class Failing:
    """A plugin whose hook raises."""

    @vfs.hookimpl
    def vfs_views(self) -> list[vfs.View]:
        raise RuntimeError("no views today")


class Misspelt:
    """A plugin with a hook that does not exist."""

    @vfs.hookimpl
    def vfs_veiws(self) -> list[vfs.View]:
        return []


class _View:
    name = "fine"

    def applies(self, place: vfs.Place) -> bool:
        return False

    async def entries(self, place: vfs.Place) -> dict[str, vfs.Node | None]:
        return {}

    async def resolve(self, place: vfs.Place, name: str) -> vfs.Node | None:
        return None


def vfs_view() -> vfs.View:
    return _View()


def test_what_is_shipped_comes_by_entry_points_as_anyones() -> None:
    states = {info.name: info.state for info in load_plugins().infos}
    assert states == dict.fromkeys(("control", "h4mk", "mp4", "search"), "loaded")
    views = load_plugins().views(Settings(), Status())
    assert {"mp4", "control"} <= {view.name for view in views}


def test_a_blocked_plugin_is_not_loaded() -> None:
    plugins = load_plugins(blocked=["mp4"])
    assert {info.name: info.state for info in plugins.infos}["mp4"] == "blocked"
    assert "mp4" not in [view.name for view in plugins.views(Settings(), Status())]


def test_a_plugin_whose_hook_fails_is_left_out_and_named(expected_logs: ExpectedLogs) -> None:
    plugins = load_plugins(extra=[("failing", Failing()), ("fine", Fine())])
    expected_logs("plugin failing failed")
    names = [view.name for view in plugins.views(Settings(), Status())]
    assert "fine" in names
    assert "failed in a hook" in next(info.state for info in plugins.infos if info.name == "failing")


def test_a_misspelt_hook_is_an_error() -> None:
    with pytest.raises(vfs.ConfigError, match="vfs_veiws"):
        load_plugins(extra=[("misspelt", Misspelt())])


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(vfs.ConfigError, match="gopher"):
        load_plugins().store("gopher://x", Settings())


def test_a_mistake_in_the_settings_of_a_plugin_is_told_at_start() -> None:
    class Strict:
        @vfs.hookimpl
        def vfs_views(self, settings: Settings) -> list[vfs.View]:
            raise vfs.ConfigError("plugin.strict.size: not a number")

    with pytest.raises(vfs.ConfigError, match=r"plugin\.strict\.size"):
        load_plugins(extra=[("strict", Strict())]).views(Settings(), Status())


def test_a_command_of_a_plugin_takes_no_others_place(expected_logs: ExpectedLogs) -> None:
    expected_logs("offers the command status, which exists already")

    async def mine(asked: vfs.Asked) -> str:
        return "mine"

    class Plugin:
        @vfs.hookimpl
        def vfs_control(self) -> list[vfs.MountCommand]:
            return [vfs.MountCommand("status", mine), vfs.MountCommand("mine.say", mine)]

    async def main() -> None:
        settings = Settings.load({"source": "memory://"}, environ={})
        plugins = [("mine", Plugin())]
        async with open_runtime(settings, store=MemoryStore(), extra_plugins=plugins) as runtime:
            call = Call({}, trio.sleep)
            assert await runtime.control.run("mine.say", call) == "mine"
            assert (await runtime.control.run("status", call))["read_write"] is False

    trio.run(main)
