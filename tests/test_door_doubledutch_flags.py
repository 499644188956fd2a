"""The command line of the DoubleDutch door, and how it ends when it is told wrong things."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from cli_tools import environment
from door_tools import DLOCK_MODULE

pytest.importorskip("httptools", reason="pip install 'dlock[doors]'")

from dlock.doors.door import Usage
from dlock.doors.doubledutch.flags import Flags, parse


def test_a_port_alone_is_what_the_original_defaults_to() -> None:
    assert parse(["8000"]) == Flags(
        8000, host="", server_name="DoubleDutch/v0.3.0", precision_ms=333, threads=0, https=True,
        api_key=None, certificate_path="/certificate.crt", key_path="/privateKey.key",
        config_path="/config.txt")


def test_only_the_first_letter_of_a_flag_counts() -> None:
    assert parse(["80", "n", "Me", "p", "0", "t", "4", "h", "0", "a", "K"]) == parse(
        ["80", "name", "Me", "precision", "0", "threads", "4", "http", "0", "apikey", "K"])
    assert parse(["80", "n", "Me", "p", "0", "t", "4", "h", "0", "a", "K"]) == Flags(
        80, server_name="Me", precision_ms=0, threads=4, https=False, api_key="K")


def test_the_last_of_repeated_flags_counts() -> None:
    assert parse(["80", "n", "A", "n", "B"]).server_name == "B"


def test_a_key_or_a_name_of_digits_is_taken() -> None:
    told = parse(["80", "a", "123", "n", "456"])
    assert (told.api_key, told.server_name) == ("123", "456")


def test_paths_and_the_address_are_our_words() -> None:
    told = parse(["--cert", "c", "80", "--key=k", "a", "--x", "--config", "f", "--host=127.0.0.1"])
    assert (told.certificate_path, told.key_path, told.config_path) == ("c", "k", "f")
    assert (told.host, told.api_key) == ("127.0.0.1", "--x")


@pytest.mark.parametrize(("words", "message"), [
    ([], "Not a valid input"),
    (["p"], "Not a valid input"),
    (["-1"], "Not a valid input"),
    (["80x"], "Not a valid input"),
    (["80", "p"], "Not a valid input"),
    (["80", "p", "1", "t"], "Not a valid input"),
    (["p", "1", "80"], "Not a valid input"),
    (["65536"], "Not a valid input"),
    (["80", "n", "a\r\nB: c"], "Not a valid input"),
    (["80", "a", ""], "Not a valid input"),
    (["0"], "Need [SIGNED INT] as argument"),
    (["80", "t", "0"], "Need [SIGNED INT] as argument"),
    (["80", "p", "99999999999"], "Need [SIGNED INT] as argument"),
    (["80", "z", "1"], "Not a valid command-line flag"),
    (["80", "c", "1"], "Not a valid command-line flag"),
    (["80", "P", "1"], "Not a valid command-line flag"),
    (["80", "z", "q"], "Not a valid flag"),
    (["80", "p", "-1"], "Not a valid flag"),
    (["80", "t", "1.5"], "Not a valid flag"),
    (["80", "h", "x"], "Not a valid flag"),
    (["80", "c", "path"], "Not a valid flag"),
    (["80", "k", "path"], "Not a valid flag"),
    (["80", "", "q"], "Not a valid flag"),
    (["80", "h", "1"], "h only takes 0 as an argument"),
    (["80", "--cert"], "--cert needs a value"),
])
def test_what_is_wrong_is_said_as_the_original_says_it(words: list[str], message: str) -> None:
    with pytest.raises(Usage) as caught:
        parse(words)
    assert caught.value.text == f"[ERROR]: {message}! Terminating...\n"
    assert (caught.value.code, caught.value.stream) == (2, "stderr")


def test_help_is_no_error() -> None:
    with pytest.raises(Usage) as caught:
        parse(["--help"])
    assert (caught.value.code, caught.value.stream) == (0, "stdout")


@pytest.mark.parametrize(("words", "config", "message", "code"), [
    (["8000", "p"], None, "Not a valid input", 2),
    (["8000", "h", "0"], None, "No API-key file found", 1),
    (["8000", "h", "0"], "", "Empty key file", 1),
    (["8000", "h", "0"], "\nK\n", "Empty key file", 1),
    (["8000", "a", "K"], None, ".key / .crt file not found", 1),
    (["8000"], "K\n", ".key / .crt file not found", 1),
])
def test_the_process_ends_with_the_words(
    tmp_path: Path, words: list[str], config: str | None, message: str, code: int
) -> None:
    files = tmp_path / "config.txt"
    if config is not None:
        files.write_text(config)
    done = subprocess.run(
        [*DLOCK_MODULE, "door", "doubledutch", *words, "--config", str(files),
         "--cert", str(tmp_path / "no.crt"), "--key", str(tmp_path / "no.key")],
        env=environment(None), capture_output=True, text=True, timeout=120, check=False)
    assert done.stderr.endswith(f"[ERROR]: {message}! Terminating...\n")
    assert done.returncode == code
