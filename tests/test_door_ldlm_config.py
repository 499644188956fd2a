"""What ldlm-server can be told: flags, environment, file, in that order; durations; refusals."""

from __future__ import annotations

import contextlib
import json
import random
import string
import tempfile
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")


from dlock.doors import ldlm
from dlock.doors.door import DoorError, Usage
from dlock.doors.ldlm import config, duration
from dlock.doors.ldlm.config import Config, ConfigError

NOTHING: dict[str, str] = {}


def refusal(words: list[str], environ: dict[str, str] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        config.load(words, environ or {})
    return caught.value


# ---- Defaults and names --------------------------------------------------------------------------


def test_defaults_are_those_of_ldlm_server() -> None:
    socket_file = f"{tempfile.gettempdir()}/ldlm-ipc.sock"
    assert config.load([], NOTHING) == Config(ipc_socket_file=socket_file)
    made = config.load([], {"TMPDIR": "/elsewhere"})
    assert made.ipc_socket_file == "/elsewhere/ldlm-ipc.sock"


def test_the_table_and_the_values_have_the_same_names() -> None:
    assert set(config.BY_NAME) == set(Config.__dataclass_fields__)
    for option in config.OPTIONS:
        if option.name != "ipc_socket_file":
            assert getattr(Config(), option.name) == option.kind.read(option.default), option.name


SHORT = {
    "c": "config_file", "d": "default_lock_timeout", "k": "keepalive_interval",
    "t": "keepalive_timeout", "l": "listen_address", "g": "lock_gc_interval",
    "m": "lock_gc_min_idle", "v": "log_level", "s": "state_file", "n": "no_clear_on_disconnect",
    "r": "rest_listen_address",
}


def test_the_short_letters_are_those_of_ldlm_server() -> None:
    assert {letter: option.name for letter, option in config.BY_SHORT.items()} == SHORT


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--listen_address", "h:1"], {"listen_address": "h:1"}),
        (["--listen_address=h:1"], {"listen_address": "h:1"}),
        (["-l", "h:1"], {"listen_address": "h:1"}),
        (["-lh:1"], {"listen_address": "h:1"}),
        (["-l=h:1"], {"listen_address": "h:1"}),
        (["-n"], {"no_clear_on_disconnect": True}),
        (["--no_clear_on_disconnect"], {"no_clear_on_disconnect": True}),
        (["--no_clear_on_disconnect=false"], {"no_clear_on_disconnect": False}),
        (["-n=0"], {"no_clear_on_disconnect": False}),
        (["-nd5s"], {"no_clear_on_disconnect": True, "default_lock_timeout": 5.0}),
        (["-n", "-d", "1h2m3s"], {"no_clear_on_disconnect": True, "default_lock_timeout": 3723.0}),
        (["--ipc_socket_file="], {"ipc_socket_file": ""}),
        (["--ipc_socket_file", ""], {"ipc_socket_file": ""}),
        (["--password", "-x"], {"password": "-x"}),
        (["--password=a=b"], {"password": "a=b"}),
        (["--shards", "4"], {"shards": 4}),
        (["-v", "WARN"], {"log_level": "warn"}),
        (["-r", ":8080", "-r", ":9090"], {"rest_listen_address": ":9090"}),
        (["-s", "one", "--", "-s", "two"], {"state_file": "one"}),
        (["word", "-s", "one"], {"state_file": "one"}),
        (["-"], {}),
    ],
)
def test_flags_are_read_as_pflag_reads_them(words: list[str], expected: dict[str, Any]) -> None:
    assert config.parse_flags(words) == expected


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--x"], "unknown flag: --x"),
        (["--x=1"], "unknown flag: --x"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["-nx"], "unknown shorthand flag: 'x' in -nx"),
        (["--listen_address"], "flag needs an argument: --listen_address"),
        (["-l"], "flag needs an argument: 'l' in -l"),
        (["-d", "x"], 'invalid argument "x" for "-d, --default_lock_timeout" flag: time: invalid '
                      'duration "x"'),
        (["--shards", "-1"], 'invalid argument "-1" for "--shards" flag: strconv.ParseUint: '
                             'parsing "-1": invalid syntax'),
        (["--version=x"], 'invalid argument "x" for "--version" flag: strconv.ParseBool: parsing '
                          '"x": invalid syntax'),
        (["-v", "loud"], 'invalid argument "loud" for "-v, --log_level" flag: invalid value for '
                         "log level 'loud'"),
        (["---x"], "bad flag syntax: ---x"),
    ],
)
def test_a_bad_flag_is_named_and_the_usage_shown(words: list[str], text: str) -> None:
    problem = refusal(words)
    assert (problem.text, problem.code != 0, problem.usage) == (text, True, True)
    with pytest.raises(Usage) as caught:
        ldlm.make(words, {})
    assert caught.value.text == f"{text}\n{config.usage()}"
    assert (caught.value.code, caught.value.stream) == (2, "stderr")


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_is_the_usage(word: str) -> None:
    with pytest.raises(Usage) as caught:
        ldlm.make([word], {})
    assert (caught.value.text, caught.value.code, caught.value.stream) == (
        config.usage(), 0, "stdout")
    for option in config.OPTIONS:
        assert f"--{option.name}" in config.usage()


def test_version_has_three_lines() -> None:
    with pytest.raises(Usage) as caught:
        ldlm.make(["--version"], {})
    assert caught.value.code == 0
    assert [line.split(":")[0] for line in caught.value.text.splitlines()] == [
        "Version", "Commit", "Built"]


# ---- The environment and the file ----------------------------------------------------------------


@pytest.mark.parametrize("option", config.OPTIONS, ids=lambda option: str(option.name))
def test_every_option_has_its_variable(option: config.Option) -> None:
    if option.name == "config_file":
        return
    text = {"duration": "7s", "uint32": "7", "": "true"}.get(option.kind.name, "debug")
    environ = {f"LDLM_{option.name.upper()}": text}
    if option.name in ("client_cert_verify", "client_ca"):
        environ["LDLM_TLS_CERT"] = "needed"
    assert getattr(config.load([], environ), option.name) == option.kind.read(text)


def test_an_empty_variable_says_nothing() -> None:
    made = config.load([], {"LDLM_IPC_SOCKET_FILE": "", "LDLM_LOG_LEVEL": ""})
    assert made.ipc_socket_file
    assert made.log_level == "info"


def test_a_flag_wins_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ldlm.json"
    path.write_text(json.dumps({"listen_address": "file:1", "password": "file", "shards": 3}))
    environ = {"LDLM_LISTEN_ADDRESS": "environment:1", "LDLM_PASSWORD": "environment"}
    made = config.load(["-c", str(path), "-l", "flag:1"], environ)
    assert (made.listen_address, made.password, made.shards) == ("flag:1", "environment", 3)
    assert made.config_file == str(path)
    assert config.load([], {"LDLM_CONFIG_FILE": str(path)}).password == "file"


@pytest.mark.parametrize("name", ["ldlm.yaml", "ldlm.yml", "LDLM.YAML"])
def test_a_yaml_file_has_the_names_of_the_flags(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_text('listen_address: "0.0.0.0:2000"\nlock_gc_interval: 20m\nlog_level: debug\n'
                    "no_clear_on_disconnect: true\nshards: 8\nipc_socket_file: ''\n")
    made = config.load([f"--config_file={path}"], NOTHING)
    assert made.listen_address == "0.0.0.0:2000"
    assert made.lock_gc_interval == 1200.0
    assert made.log_level == "debug"
    assert made.no_clear_on_disconnect
    assert made.shards == 8
    assert made.ipc_socket_file == ""


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("a.ini", "", "unsupported config file type: a.ini"),
        ("a.json", "{", "error parsing config file: "),
        ("a.json", "[]", "it must be a map"),
        ("a.json", '{"no_such": 1}', "unknown configuration file field: no_such"),
        ("a.json", '{"shards": "many"}', "error parsing config file value: shards: "),
        ("a.json", '{"shards": [1]}', "error parsing config file value: shards: "),
        ("a.json", "[" * 100000, "error parsing config file: "),
        ("a.yaml", "a: [", "error parsing config file: "),
        ("a.yaml", "1: 2", "unknown configuration file field: 1"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "error parsing config file: "),
        ("a.json", " " * (config.CONFIG_BYTES_MAX + 1), "has more than"),
    ],
)
def test_a_bad_file_is_refused_by_name(
    tmp_path: Path, name: str, content: str, text: str
) -> None:
    path = tmp_path / name
    path.write_text(content)
    problem = refusal(["-c", str(path)])
    assert problem.text.startswith("error parsing configuration: ")
    assert text in problem.text
    assert (problem.code, problem.usage) == (1, False)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    assert refusal(["-c", str(path)]).text == (
        f"error parsing configuration: error reading config file {path}: No such file or directory")


def test_a_bad_variable_is_named() -> None:
    problem = refusal([], {"LDLM_LOCK_GC_INTERVAL": "often"})
    assert problem.text == ('error parsing configuration: LDLM_LOCK_GC_INTERVAL: time: invalid '
                            'duration "often"')
    assert problem.code == 1


def test_client_certificates_need_a_certificate_of_the_server() -> None:
    for words in (["--client_ca", "f"], ["--client_cert_verify"]):
        problem = refusal(words)
        assert problem.text == ("net.Run() error starting server: client TLS certificate "
                                "verification requires server TLS to be configured")
        assert (problem.code, problem.usage) == (1, False)


def test_an_interval_must_be_one() -> None:
    assert "lock_gc_interval" in refusal(["-g", "0"]).text


# ---- Durations -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds", "shown"),
    [
        ("1h2m3s", 3723.0, "1h2m3s"), ("10m", 600.0, "10m0s"), ("0", 0.0, "0s"),
        ("1.5h", 5400.0, "1h30m0s"), ("300ms", 0.3, "300ms"), ("1us", 1e-6, "1µs"),
        ("1µs", 1e-6, "1µs"), ("5ns", 5e-9, "5ns"), ("-3s", -3.0, "-3s"), ("+3s", 3.0, "3s"),
        (".5s", 0.5, "500ms"), ("1.s", 1.0, "1s"), ("1500ms", 1.5, "1.5s"),
    ],
)
def test_durations_are_go_s(text: str, seconds: float, shown: str) -> None:
    assert duration.seconds(text) == pytest.approx(seconds)
    assert duration.shown(duration.nanoseconds(text)) == shown


@pytest.mark.parametrize("text", ["", "x", "1x", "s", ".s", "1 s", "1h-1m", "9" * 30 + "h", "٣s"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="time: "):
        duration.seconds(text)


def test_a_duration_wants_its_unit() -> None:
    with pytest.raises(ValueError, match='time: missing unit in duration "10"'):
        duration.seconds("10")


# ---- Anything ------------------------------------------------------------------------------------


def test_whatever_is_told_is_taken_or_refused() -> None:
    chance = random.Random(8)
    pieces = [*(f"--{name}" for name in config.BY_NAME), *(f"-{one}" for one in config.BY_SHORT),
              "=", "1h", "true", "info", "", "-", "--", "é", "\udc80"]
    for _ in range(3000):
        words = ["".join(chance.choices(pieces, k=chance.randint(1, 3)))
                 for _ in range(chance.randint(0, 4))]
        environ = {f"LDLM_{chance.choice(list(config.BY_NAME)).upper()}":
                   "".join(chance.choices(string.printable, k=chance.randint(0, 4)))
                   for _ in range(chance.randint(0, 1))}
        with contextlib.suppress(DoorError):
            ldlm.make(words, environ)


def test_whatever_is_in_a_file_is_taken_or_refused() -> None:
    chance = random.Random(9)
    for turn in range(2000):
        good = json.dumps({chance.choice(list(config.BY_NAME)): chance.choice(
            [1, "1h", True, None, [], {}, 1e400, "info"])}).encode()
        content = bytearray(good)
        for _ in range(chance.randint(0, 3)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        with contextlib.suppress(ConfigError):
            config.read_settings(bytes(content), is_json=turn % 2 == 0)
