"""The settings of `dlock serve`: one table for flags, variables, TOML keys and the documents."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from dlock.cli.door_words import Wish, parse_wish
from dlock.cli.serve_settings import SETTINGS
from dlock.cli.settings import (
    DEFAULT,
    SettingError,
    Value,
    add_flags,
    as_markdown,
    as_toml,
    resolve,
    stray_variables,
)

ROOT = Path(__file__).resolve().parent.parent
# For each setting a text as a flag or variable has it, TOML for the same, and the value of both.
EXAMPLES: dict[str, tuple[str, str, object]] = {
    "listen": ("[::1]:7", '"[::1]:7"', ("::1", 7)),
    "data-port": ("8", "8", 8),
    "state-dir": ("/var/d", '"/var/d"', Path("/var/d")),
    "take-over": ("yes", "true", True),
    "accept-empty-state": ("yes", "true", True),
    "address-file": ("/tmp/a", '"/tmp/a"', Path("/tmp/a")),
    "max-locks": ("9", "9", 9),
    "max-clients": ("10", "10", 10),
    "max-objects": ("11", "11", 11),
    "session-ttl": ("2.5", "2.5", 2500),
    "max-lease": ("60", "60", 60_000),
    "recovery-deadline": ("30", "30", 30_000),
    "wait": ("poll", '"poll"', "poll"),
    "transport": ("verbs", '"verbs"', "verbs"),
    "device": ("rxe0", '"rxe0"', "rxe0"),
    "gid": ("fe80::1", '"fe80::1"', "fe80::1"),
    "control-cpus": ("0-3", '"0-3"', "0-3"),
    "data-cpus": ("1", '"1"', "1"),
    "door": ("ldlm=--namespace n -l 'a b'",
             "[{kind = 'ldlm', namespace = 'n', flags = ['-l', 'a b']}]",
             (Wish("ldlm", "n", "", ("-l", "a b")),)),
    "log-level": ("debug", '"debug"', "debug"),
}


def settled(*flags: str, environment: Mapping[str, str] | None = None) -> dict[str, Value]:
    parser = argparse.ArgumentParser()
    add_flags(parser, SETTINGS)
    return resolve(SETTINGS, parser.parse_args(flags), environment or {})


def values(settled: Mapping[str, Value]) -> dict[str, Any]:
    return {name.replace("_", "-"): one.value for name, one in settled.items()}


def config(folder: Path, text: str) -> str:
    path = folder / "dlock.toml"
    path.write_text(text)
    return str(path)


def test_every_setting_has_an_example() -> None:
    assert list(EXAMPLES) == [one.name for one in SETTINGS]
    for one in SETTINGS:
        assert EXAMPLES[one.name][2] != one.default, "it could not be told from the default"


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.name)
def test_a_flag_a_variable_and_a_key_say_the_same(setting: Any, tmp_path: Path) -> None:
    text, toml, value = EXAMPLES[setting.name]
    expected = {one.name: one.default for one in SETTINGS} | {setting.name: value}
    file = config(tmp_path, f"{setting.name} = {toml}\n")
    by_flag = settled(f"--{setting.name}", text)
    by_variable = settled(
        environment={"DLOCK_" + setting.name.upper().replace("-", "_"): text})
    by_key = settled("--config", file)
    for one, source in ((by_flag, f"--{setting.name}"), (by_variable, setting.variable),
                        (by_key, f"{file}: {setting.name}")):
        assert values(one) == expected
        assert one[setting.attribute].source == source
    assert values(settled(environment={"DLOCK_CONFIG": file})) == expected


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda one: one.name)
def test_flags_stand_over_the_environment_and_that_over_the_file(
    setting: Any, tmp_path: Path
) -> None:
    text, toml, value = EXAMPLES[setting.name]
    low = {"listen": "low:1", "wait": "block", "log-level": "error", "take-over": "false",
           "accept-empty-state": "false",
           "transport": "tcp", "door": "glockd="}.get(setting.name, "4")
    others = (value,) if isinstance(value, bool) else (value, setting.default)
    quoted = low if setting.kind.toml != (str,) else f'"{low}"'
    quoted = "[{kind = 'glockd'}]" if setting.name == "door" else quoted
    variable = {setting.variable: text}
    low_file = config(tmp_path, f"{setting.name} = {quoted}\n")
    by_file = settled("--config", low_file)
    assert by_file[setting.attribute].source == f"{low_file}: {setting.name}"
    assert values(by_file)[setting.name] not in others
    over_file = settled("--config", low_file, environment=variable)
    assert values(over_file)[setting.name] == value
    high_file = config(tmp_path, f"{setting.name} = {toml}\n")
    over_all = settled("--config", high_file, setting.flag, low, environment=variable)
    assert over_all[setting.attribute].source == setting.flag
    assert values(over_all)[setting.name] not in others


def test_a_yes_needs_no_value() -> None:
    assert settled("--take-over")["take_over"].value is True
    assert settled("--take-over", "no")["take_over"].value is False
    assert settled(environment={"DLOCK_TAKE_OVER": "1"})["take_over"].value is True


def test_config_flag_stands_over_its_variable(tmp_path: Path) -> None:
    file = config(tmp_path, "max-locks = 3\n")
    found = settled("--config", file, environment={"DLOCK_CONFIG": "/nowhere"})
    assert found["max_locks"].value == 3


def test_an_empty_variable_is_none() -> None:
    found = settled(environment={"DLOCK_WAIT": "", "DLOCK_MAX_LOCKS": "", "DLOCK_CONFIG": ""})
    assert {one.source for one in found.values()} == {DEFAULT}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("max-lock = 3", "there is no setting 'max-lock'; did you mean max-locks?"),
        ("max_locks = 3", "did you mean max-locks?"),
        ("Session_TTL = 3", "did you mean session-ttl?"),
        ("xyzzy = 3", "there is no setting 'xyzzy'; there are listen, data-port"),
        ("[serve]\nmax-locks = 3", "there is no setting 'serve'"),
        ("max-locks = '3'", "max-locks is '3'; it takes a whole number"),
        ("max-locks = 3.5", "it takes a whole number"),
        ("max-locks = true", "it takes a whole number"),
        ("max-locks = -1", "'-1' is no whole number"),
        ("session-ttl = nan", "'nan' is no number of seconds"),
        ("session-ttl = inf", "'inf' is no number of seconds"),
        ("session-ttl = true", "it takes a number of seconds"),
        ("listen = 21616", "it takes HOST:PORT"),
        ("listen = 'here:99999'", "'here:99999' is not HOST:PORT with a port in 0..65535"),
        ("wait = 'bloc'", "'bloc' is not one of block, adaptive, poll; did you mean block?"),
        ("take-over = 1", "take-over is 1; it takes yes or no"),
        ("take-over = 'yes'", "take-over is 'yes'; it takes yes or no"),
        ("max-locks 3", "is no TOML"),
        ("door = 'ldlm='", "door is 'ldlm='; it takes KIND='words'"),
        ("door = ['ldlm=']", "door 1 is 'ldlm='; it takes a table"),
        ("[[door]]", "door 1: it has no kind"),
        ("[[door]]\nkind = 'ldlm'\n[[door]]\nkind = 'glock'",
         "door 2: 'glock' is no kind of door; there are glockd, ldlm, doubledutch; did you mean "
         "glockd?"),
        ("[[door]]\nkind = 3", "door 1: kind is 3; it takes a text"),
        ("[[door]]\nkind = 'ldlm'\nport = 1", "door 1: there is no key 'port'"),
        ("[[door]]\nkind = 'ldlm'\nnamespace = 'a:b'", "door 1: 'a:b' is no namespace"),
        ("[[door]]\nkind = 'ldlm'\nflags = '-p 1'", "it takes a list of texts, a word each"),
        ("[[door]]\nkind = 'ldlm'\nflags = [1]", "it takes a list of texts, a word each"),
        ("wait = 'block'\nwait = 'poll'", "is no TOML"),
    ],
)
def test_what_a_file_says_wrongly_is_refused(tmp_path: Path, text: str, words: str) -> None:
    file = config(tmp_path, text)
    with pytest.raises(SettingError) as caught:
        settled("--config", file)
    assert words in str(caught.value)
    assert file in str(caught.value)


def test_a_file_that_cannot_be_read_is_said_to_be(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(SettingError, match=f"{path} cannot be read"):
            settled("--config", str(path))
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="is no TOML"):
        settled("--config", str(tmp_path / "bytes"))


def test_a_wrong_variable_is_named() -> None:
    with pytest.raises(SettingError, match=r"^DLOCK_MAX_LOCKS: 'many' is no whole number"):
        settled(environment={"DLOCK_MAX_LOCKS": "many"})


def test_paths_of_a_file_are_seen_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    file = config(tmp_path, "state-dir = 'state'\naddress-file = '~/address'\n")
    found = values(settled("--config", file))
    assert found["state-dir"] == tmp_path / "state"
    assert found["address-file"] == Path("/home/me/address")
    assert values(settled("--state-dir", "state"))["state-dir"] == Path("state")
    without = settled("--config", config(tmp_path, "state-dir = 'none'"))
    assert without["state_dir"].value == "none"


def test_what_is_printed_says_the_same_again(tmp_path: Path) -> None:
    flags = [word for name, (text, _, _) in EXAMPLES.items() for word in (f"--{name}", text)]
    whole = settled(*flags)
    again = settled("--config", config(tmp_path, as_toml(SETTINGS, whole)))
    assert values(again) == values(whole)
    assert "# --max-locks" in as_toml(SETTINGS, whole)
    plain = settled()
    assert values(settled("--config", config(tmp_path, as_toml(SETTINGS, plain)))) == values(plain)


def test_the_documentation_has_this_table() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert as_markdown(SETTINGS) in text
    example = re.search(r"```toml\n(.*?)```", text, re.S)
    assert example


def test_the_example_of_the_documentation_is_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    found = settled("--config", config(tmp_path, example))
    assert found["state_dir"].value == Path("/var/lib/dlock")
    assert found["listen"].value == ("10.1.0.5", 21616)


def test_the_examples_of_doors_are_accepted(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "doors.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.S)
    (one,) = settled("--config", config(tmp_path, example))["door"].value
    assert one == Wish("ldlm", "builds", "/run/builds",
                       ("-l", "0.0.0.0:3144", "--password", "secret"))
    (command,) = re.findall(r"^    dlock serve (--door .*(?:\n {8,}--door .*)*)", text, re.M)
    flags = shlex.split(command.replace("\\\n", " "))
    assert len(settled(*flags)["door"].value) == flags.count("--door") > 1


# ---- Doors ---------------------------------------------------------------------------------------


def test_there_may_be_several_doors(tmp_path: Path) -> None:
    two = (Wish("glockd", "glockd", "", ("-port", "1")), Wish("glockd", "b", "r", ()))
    assert settled("--door", "glockd=-port 1", "--door", "glockd=--namespace b --ready-file=r"
                   )["door"].value == two
    assert settled(environment={"DLOCK_DOOR": "glockd=-port 1\n\n glockd=--namespace=b "
                                              "--ready-file r\n"})["door"].value == two
    file = config(tmp_path, "[[door]]\nkind = 'glockd'\nflags = ['-port', '1']\n"
                            "[[door]]\nkind = 'glockd'\nnamespace = 'b'\nready-file = 'r'\n")
    found = settled("--config", file)["door"].value
    assert found == (two[0], Wish("glockd", "b", str(tmp_path / "r"), ()))


def test_doors_are_printed_as_they_can_be_read_again(tmp_path: Path) -> None:
    words = "it's \"quoted\" \\ é"
    shown = as_toml(SETTINGS, settled("--door", "ldlm=", "--door",
                                      f"doubledutch=--namespace x 80 n {shlex.quote(words)}"))
    assert '[[door]]  # --door\nkind = "ldlm"\nnamespace = "ldlm"\n' in shown
    again = settled("--config", config(tmp_path, shown))["door"].value
    assert again == (Wish("ldlm", "ldlm"), Wish("doubledutch", "x", "", ("80", "n", words)))
    assert parse_wish(str(again[1])) == again[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("glockd", "'glockd' is not KIND='words'; a kind alone is written glockd="),
        ("gloc=", "'gloc' is no kind of door; there are glockd, ldlm, doubledutch"),
        ("ldlm-lock=", "'ldlm-lock' is no kind of door"),
        ("ldlm='", "cannot be split into words"),
        ("ldlm=--connect a:1", "the door serves from this primary"),
        ("ldlm=--connect=a:1", "the door serves from this primary"),
        ("ldlm=--namespace", "--namespace needs a value"),
        ("ldlm=--namespace +", "'+' is no namespace"),
        ("ldlm=--parent 1", "--parent is for this program to say"),
        ("ldlm=--check", "--check is for this program to say"),
    ],
)
def test_a_wrong_door_is_refused(text: str, words: str) -> None:
    with pytest.raises(SettingError, match=r"^DLOCK_DOOR: ") as caught:
        settled(environment={"DLOCK_DOOR": text})
    assert words in str(caught.value)


def test_a_variable_that_nobody_reads_is_hinted_at() -> None:
    assert stray_variables(SETTINGS, ("DLOCK_ADDRESS",), {
        "DLOCK_MAX_LOCK": "3", "DLOCK_WAIT": "poll", "DLOCK_ADDRESS": "h:1", "DLOCK_CONFIG": "f",
        "DLOCK_XYZZY": "1", "MAX_LOCKS": "1",
    }) == ["DLOCK_MAX_LOCK is not read; did you mean DLOCK_MAX_LOCKS?"]
