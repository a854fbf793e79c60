"""Settings: one precedence, errors that name file and key, and a table that documentation is made from."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from vfs import ConfigError
from vfs.config import KNOWN, Settings
from vfs.configsources import config_file, markdown, toml_value
from vfs.units import format_size, human_size, parse_seconds, parse_size, split_list

GIB = 1 << 30


def load(tmp_path: Path, text: str, **kwargs: object) -> Settings:
    file = tmp_path / "c.toml"
    file.write_text(text)
    return Settings.load(config=file, environ={}, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("10GiB", 10 * GIB),
        ("256MiB", 256 << 20),
        ("64k", 65536),
        ("1.5G", 3 << 29),
        ("7", 7),
        ("2 MB", 2 << 20),
    ],
)
def test_size_texts(text: str, size: int) -> None:
    assert parse_size(text) == size
    assert parse_size(format_size(size)) == size


@pytest.mark.parametrize("text", ["", "x", "-1", "1X", "1GiBB", "GiB", "1 0"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("30", 30.0), ("500ms", 0.5), ("1m30s", 90.0), ("2 h", 7200.0), ("0.25s", 0.25)]
)
def test_duration_texts(text: str, seconds: float) -> None:
    assert parse_seconds(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "-3", "3 weeks", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_seconds(text)


def test_human_sizes_are_rounded() -> None:
    assert (human_size(12), human_size(4.4 * (1 << 20))) == ("12 B", "4.4 MiB")


def test_lists_escape_commas() -> None:
    assert split_list(r"a,b\,c, d ,,e\\") == ["a", "b,c", "d", "e\\"]


def test_precedence_is_flag_option_environment_file_default(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text('memory = "32MiB"\ncache_size = "1GiB"\nread_ahead = "1MiB"\ndir_ttl = 5\n')
    environ = {"REELFS_MEMORY": "64MiB", "REELFS_CACHE_SIZE": "2GiB", "REELFS_READ_AHEAD": "2MiB"}
    settings = Settings.load(
        {"memory": "256MiB", "uid": None},
        options=["memory=128MiB,cache_size=3GiB"],
        config=file,
        environ=environ,
    )
    assert settings.memory == 256 << 20
    assert settings.cache_size == 3 * GIB
    assert settings.read_ahead == 2 << 20
    assert settings.dir_ttl == 5.0
    assert settings.attr_ttl == 1.0
    assert settings.origins["memory"] == "command line: --memory"
    assert settings.origins["cache_size"] == "command line: -o cache_size"
    assert settings.origins["read_ahead"] == "environment: REELFS_READ_AHEAD"
    assert settings.origins["dir_ttl"] == f"{file}: dir_ttl"
    assert "attr_ttl" not in settings.origins


def test_an_unknown_key_of_a_file_names_file_and_key_and_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.toml: cache_siz: no such setting; did you mean cache_size\?"):
        load(tmp_path, 'cache_siz = "1GiB"')
    with pytest.raises(ConfigError, match=r"workers\.proceses: .*workers\.processes"):
        load(tmp_path, "[workers]\nproceses = 3")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('memory = "much"', "memory"),
        ("memory = true", "memory"),
        ('memory = "1MiB"', "memory"),
        ("deadline = 0", "deadline"),
        ("deadline = nan", "deadline"),
        ("attr_ttl = -1", "attr_ttl"),
        ("expand = [1]", "expand"),
        ('umask = "9"', "umask"),
        ("umask = 0o1000", "umask"),
        ('log_level = "loud"', "log_level"),
        ('foreground = "perhaps"', "foreground"),
        ("[workers]\nprocesses = 0", r"workers\.processes"),
        ("workers = 3", "workers"),
        ('plugins = "x"', "plugins"),
    ],
)
def test_a_wrong_value_names_file_and_key_in_one_line(tmp_path: Path, text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"c\.toml: {key}: ") as caught:
        load(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_broken_toml_names_file_and_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"c\.toml: not valid TOML: .*line 2"):
        load(tmp_path, "a = 1\nb = = 2")


def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b'source = "\xff"')
    with pytest.raises(ConfigError, match=r"c\.toml: not valid TOML"):
        Settings.load(config=file, environ={})


def test_a_named_file_must_exist_the_default_one_need_not(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.toml: no such configuration file"):
        Settings.load(config=tmp_path / "gone.toml", environ={})
    with pytest.raises(ConfigError, match=r"gone\.toml"):
        Settings.load(environ={"REELFS_CONFIG": str(tmp_path / "gone.toml")})
    assert config_file(None, {"XDG_CONFIG_HOME": str(tmp_path)}) is None
    own = tmp_path / "reelfs" / "config.toml"
    own.parent.mkdir()
    own.write_text("dir_ttl = 7")
    assert Settings.load(environ={"XDG_CONFIG_HOME": str(tmp_path)}).dir_ttl == 7.0


def test_environment_variables_that_are_no_setting() -> None:
    with pytest.raises(
        ConfigError, match=r"REELFS_CACHESIZE is no setting; did you mean REELFS_CACHE_SIZE\?"
    ):
        Settings.load(environ={"REELFS_CACHESIZE": "1"})
    environ = {"REELFS_DEBUG": "1", "REELFS__FD": "3", "OTHER": "x", "REELFS_MEMORY": ""}
    assert Settings.load(environ=environ) == Settings.load(environ={})


def test_a_wrong_environment_value_names_the_variable() -> None:
    with pytest.raises(ConfigError, match=r"^environment: REELFS_WORKERS_PROCESSES: "):
        Settings.load(environ={"REELFS_WORKERS_PROCESSES": "two"})


def test_options_take_words_lists_and_what_mount_passes() -> None:
    text = "rw,noatime,_netdev,x-systemd.automount,allow-other,expand=*.a,expand=*.b,workers.processes=4"
    settings = Settings.load(options=[text, "ro"], environ={})
    assert settings.allow_other
    assert settings.expand == ("*.a", "*.b")
    assert settings.workers.processes == 4
    assert not settings.read_write


def test_options_are_checked_like_everything_else() -> None:
    with pytest.raises(ConfigError, match=r"-o: memry: no such setting; did you mean memory\?"):
        Settings.load(options=["memry=1"], environ={})
    with pytest.raises(ConfigError, match=r"^command line: -o memory: '4x' is not a size"):
        Settings.load(options=["memory=4x"], environ={})


def test_lists_from_the_environment() -> None:
    settings = Settings.load(environ={"REELFS_PLUGINS_BLOCK": "mp4, search", "REELFS_IMMUTABLE": r"a\,b"})
    assert settings.plugins.block == ("mp4", "search")
    assert settings.immutable == ("a,b",)


def test_umask_is_octal_as_text_and_what_it_says_as_a_number(tmp_path: Path) -> None:
    assert Settings.load({"umask": "022"}, environ={}).umask == 0o022
    assert load(tmp_path, "umask = 0o027").umask == 0o027


def test_plugin_tables_come_whole(tmp_path: Path) -> None:
    settings = load(tmp_path, '[plugin.mp4]\nlimits = {a = 1}\nname = "x"', options=["plugin.mp4.deep=2"])
    assert settings.plugin("mp4") == {"limits": {"a": 1}, "name": "x", "deep": 2}
    assert settings.plugin("none") == {}
    assert Settings.load(environ={"REELFS_PLUGIN_MP4_NAME": "y z"}).plugin("mp4") == {"name": "y z"}


def test_a_local_source_has_no_disk_cache_a_remote_one_has(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    assert Settings.load({"source": "/videos"}, environ=environ).cache_dir is None
    assert Settings.load({"source": "file:///videos"}, environ=environ).cache_dir is None
    assert Settings.load({"source": "s3://b"}, environ=environ).cache_dir == tmp_path / "reelfs"
    assert Settings.load({"source": "s3://b", "cache_dir": "none"}, environ=environ).cache_dir is None


def test_paths_are_absolute_because_the_daemon_changes_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/u")
    settings = Settings.load({"source": "videos", "mountpoint": "m", "log_file": "~/x.log"}, environ={})
    assert settings.source == str(tmp_path / "videos")
    assert settings.mountpoint == tmp_path / "m"
    assert settings.log_file == Path("/home/u/x.log")


def test_credentials_in_a_source_are_refused() -> None:
    with pytest.raises(ConfigError, match="SOURCE: credentials do not belong in a source") as caught:
        Settings.load({"source": "s3://AKIA:topsecret@bucket"}, environ={})
    assert "topsecret" not in str(caught.value)
    assert Settings.load({"source": "s3://bucket/a@b"}, environ={}).source == "s3://bucket/a@b"


def test_the_effective_toml_gives_the_same_settings_again(tmp_path: Path) -> None:
    before = Settings.load(
        {"source": 's3://b/we"ird\\\n', "umask": "022"},
        options=["expand=*.a,plugin.mp4.x=1", "allow_other,workers.memory=3M"],
        environ={"REELFS_MEMORY": "65MiB", "HOME": "/h"},
    )
    text = before.to_toml()
    assert '"65MiB"  # environment: REELFS_MEMORY' in text
    assert "dir_ttl = 60.0  # default" in text
    after = load(tmp_path, text)
    assert after.model_dump(exclude={"origins", "file"}) == before.model_dump(exclude={"origins", "file"})


def test_a_plugin_key_that_looks_like_a_secret_is_not_shown(tmp_path: Path) -> None:
    text = load(tmp_path, '[plugin.x]\napi_token = "hush"\nb = 1').to_toml()
    assert "hush" not in text
    assert "b = 1" in text
    tomllib.loads(text)


def test_settings_travel_as_json() -> None:
    before = Settings.load({"source": "s3://b", "cache_dir": "/c"}, options=["plugin.p.q=[1]"], environ={})
    assert Settings.from_dict(json.loads(json.dumps(before.to_dict()))) == before
    with pytest.raises(ConfigError, match="settings: memory: "):
        Settings.from_dict({"memory": "x"})


def test_every_setting_is_described_and_reachable_every_way(tmp_path: Path) -> None:
    table = Settings.describe()
    assert {option.key for option in table} == set(KNOWN)
    assert len({option.env for option in table}) == len(table)
    for option in table:
        assert option.help
        assert not option.help.endswith(".")
        default = option.default
        if default not in (None, "") and option.key != "cache_dir":
            _same_by_every_way(tmp_path, option.key, option.env, toml_value(default, option.type))


def _same_by_every_way(tmp_path: Path, key: str, env: str, text: str) -> None:
    plain = tomllib.loads(f"v = {text}")["v"]
    word = ",".join(plain) if isinstance(plain, list) else str(plain)
    if text.startswith("0o"):
        word = text
    table, _, name = key.rpartition(".")
    by_file = load(tmp_path, (f"[{table}]\n" if table else "") + f"{name} = {text}")
    by_env = Settings.load(environ={env: word})
    # In -o a comma ends an option: a list repeats its key.
    items = plain if isinstance(plain, list) else [word]
    by_option = Settings.load(options=[",".join(f"{key}={item}" for item in items)], environ={})
    plain_dump = Settings().model_dump(exclude={"origins", "file"})
    for settings in (by_file, by_env, by_option):
        assert settings.model_dump(exclude={"origins", "file"}) == plain_dump


def test_the_table_for_documentation_has_a_row_for_every_setting() -> None:
    lines = markdown(Settings.describe()).splitlines()
    assert len(lines) == len(KNOWN) + 2
    assert '| `cache_size` | size | `"10GiB"` | `REELFS_CACHE_SIZE` | `--cache-size` |' in "\n".join(lines)
    assert {line.count("|") for line in lines} == {7}


def test_settings_are_immutable() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().memory = 3
