"""`dlock completion`, and what every subcommand says of itself."""

from __future__ import annotations

import argparse
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from cli_tools import DLOCK, dlock, environment
from mirror_tools import ATOMIC, S, Service

from dlock import dclient
from dlock.cli import SUBCOMMANDS, parser_of_all
from dlock.cli.completion import SHELLS
from dlock.types import LockDesc

ROOT = Path(__file__).resolve().parent.parent
WITHOUT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None
from dlock.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_one_that_the_shell_takes(shell: str, tmp_path: Path) -> None:
    done = dlock("completion", shell)
    assert (done.code, done.err) == (0, "")
    for name in SUBCOMMANDS:
        assert name in done.out
    program = shutil.which(shell)
    if program is not None and shell != "tcsh":  # which has no way to check without running
        script = tmp_path / "script"
        script.write_text(done.out)
        subprocess.run([program, "-n", str(script)], check=True, timeout=60)


def bash_completes(folder: Path, words: str, address: str) -> list[str]:
    """What bash offers at the end of these words, after having read the script."""
    (folder / "script").write_text(dlock("completion", "bash").out)
    (folder / "dlock").write_text(
        f"#!/bin/sh\nexec {sys.executable} -c '{DLOCK[2]}' \"$@\"\n")
    (folder / "dlock").chmod(0o755)
    program = f"""
source {folder}/script
COMP_WORDS=({words}) COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 )) COMPREPLY=()
$(complete -p dlock | sed 's/.*-F \\([^ ]*\\).*/\\1/') dlock "${{COMP_WORDS[$COMP_CWORD]}}" \\
    "${{COMP_WORDS[$COMP_CWORD-1]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, timeout=60, cwd=folder,
        check=False, env={**environment(address), "PATH": f"{folder}:/usr/bin:/bin"})
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_and_names(service: Service, tmp_path: Path) -> None:
    client = service.client()
    for name in (b"reports/daily", b"reports/weekly", b"$(touch hurt)", b"`touch hurt`"):
        assert dclient.get_lock(client, LockDesc(name, ATOMIC))[0] is S.SUCCESS
    where = f"127.0.0.1:{service.port}"
    assert "show" in bash_completes(tmp_path, "dlock s", where)
    assert "--token" in bash_completes(tmp_path, "dlock break --t", where)
    assert bash_completes(tmp_path, "dlock show rep", where) == ["reports/daily", "reports/weekly"]
    assert bash_completes(tmp_path, "dlock show ''", where) == ["reports/daily", "reports/weekly"]
    assert not (tmp_path / "hurt").exists()


def without(missing: list[str], *words: str) -> subprocess.CompletedProcess[str]:
    """`dlock` where these packages are not installed."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing), *words], capture_output=True,
        text=True, timeout=60, stdin=subprocess.DEVNULL, env=environment(None), check=False)


def test_a_missing_package_is_named() -> None:
    done = without(["shtab"], "completion", "bash")
    assert (done.returncode, done.stdout) == (72, "")
    assert done.stderr == ("dlock completion: the package shtab, which it needs, is not installed: "
                           "pip install 'dlock[cli]'\n")


def test_nothing_else_needs_the_packages() -> None:
    for name in SUBCOMMANDS:
        assert without(["rich", "shtab"], name, "--help").returncode == 0


# ---- every subcommand ----------------------------------------------------------------------------


def parsers() -> dict[str, argparse.ArgumentParser]:
    (action,) = [one for one in parser_of_all()._actions
                 if isinstance(one, argparse._SubParsersAction)]
    return dict(action.choices)


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_help_lists_the_exit_codes(name: str) -> None:
    module = importlib.import_module(f"dlock.cli.{SUBCOMMANDS[name]}")
    listed = re.findall(r"^  (\d+)  +\w", parsers()[name].format_help().split("exit code")[-1],
                        re.M)
    codes = {value for constant, value in vars(module).items()
             if re.fullmatch(r"EXIT_[A-Z]+", constant) and isinstance(value, int)}
    assert listed
    assert codes <= set(map(int, listed))


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_a_subcommand_is_documented(name: str) -> None:
    text = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    assert f"## dlock {name}\n" in text
    documented = text.split(f"## dlock {name}\n")[1].split("\n## ")[0]
    if name in ("serve", "bench"):
        return
    flags = {word for action in parsers()[name]._actions for word in action.option_strings
             if word.startswith("--")} - {"--help", "--address", "--connect-timeout", "--json"}
    assert {flag for flag in flags if flag not in documented} == set()
