"""What `ldlm-server` can be told: flags, environment (LDLM_...), configuration file. It reads that
file, and nothing else.

One table, `OPTIONS`, has every name; a flag wins over the environment, that over the file. The
errors are those of the original where it has some.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from dlock.doors.ldlm import duration

ENVIRONMENT: Final = "LDLM_"
SOCKET_NAME: Final = "ldlm-ipc.sock"
CONFIG_BYTES_MAX: Final = 1 << 20
EXIT_CONFIG: Final = 1
EXIT_FLAG: Final = 2
MISSING_YAML: Final = ("the package PyYAML, which a .yaml or .yml configuration file needs, is not "
                       "installed: pip install 'dlock[doors]', or write the file as .json")
U32_MAX: Final = 0xFFFFFFFF
LEVELS: Final = ("debug", "info", "warn", "error")


class ConfigError(Exception):
    """`text` is for the operator, `code` the exit code; `usage`: the flags are to be shown too."""

    def __init__(self, text: str, code: int = EXIT_CONFIG, *, usage: bool = False) -> None:
        super().__init__(text)
        self.text = text
        self.code = code
        self.usage = usage


@dataclass(frozen=True)
class Config:
    """What an ldlm-server was told. Durations in seconds."""

    config_file: str = ""
    version: bool = False
    log_level: str = "info"
    listen_address: str = "localhost:3144"
    keepalive_interval: float = 60.0
    keepalive_timeout: float = 10.0
    default_lock_timeout: float = 600.0
    lock_gc_interval: float = 1800.0
    lock_gc_min_idle: float = 300.0
    shards: int = 16
    no_clear_on_disconnect: bool = False
    ipc_socket_file: str = ""
    state_file: str = ""
    password: str = ""
    tls_cert: str = ""
    tls_key: str = ""
    client_cert_verify: bool = False
    client_ca: str = ""
    rest_listen_address: str = ""
    rest_session_timeout: float = 600.0


# ---- Values --------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A type of values: how flags call it (pflag), and what reads it. `bare`: what a flag without
    a value means; None: it must have one."""

    name: str
    read: Callable[[str], Any]
    bare: str | None = None


def _bool(text: str) -> bool:
    if text in ("1", "t", "T", "TRUE", "true", "True"):
        return True
    if text in ("0", "f", "F", "FALSE", "false", "False"):
        return False
    raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')


def _uint32(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise ValueError(f'strconv.ParseUint: parsing "{text}": invalid syntax')
    if len(text) > 40 or int(text) > U32_MAX:
        raise ValueError(f'strconv.ParseUint: parsing "{text}": value out of range')
    return int(text)


def _level(text: str) -> str:
    if text.lower() not in LEVELS:
        raise ValueError(f"invalid value for log level '{text}'")
    return text.lower()


STRING: Final = Kind("string", str)
DURATION: Final = Kind("duration", duration.seconds)
BOOL: Final = Kind("", _bool, bare="true")
UINT32: Final = Kind("uint32", _uint32)
LEVEL: Final = Kind("string", _level)


class Option(NamedTuple):
    """One thing to be told. `default` as it would be written."""

    name: str
    kind: Kind
    default: str
    short: str
    says: str


OPTIONS: Final = (
    Option("config_file", STRING, "", "c", "Path to yaml or json configuration file"),
    Option("version", BOOL, "false", "", "Show version and exit"),
    Option("log_level", LEVEL, "info", "v", "Log level (debug|info|warn|error)"),
    Option("listen_address", STRING, "localhost:3144", "l", "Address (host:port) at which to "
           "listen"),
    Option("keepalive_interval", DURATION, "1m", "k", "Interval at which to send keepalive pings "
           "to client"),
    Option("keepalive_timeout", DURATION, "10s", "t", "Wait this duration for the ping ack before "
           "assuming the connection is dead"),
    Option("default_lock_timeout", DURATION, "10m", "d", "Lock timeout to use when loading locks "
           "from state file on startup"),
    Option("lock_gc_interval", DURATION, "30m", "g", "Interval at which to garbage collect unused "
           "locks"),
    Option("lock_gc_min_idle", DURATION, "5m", "m", "Minimum time a lock has to be idle (no "
           "unlocks or locks) before being considered for garbage collection"),
    Option("shards", UINT32, "16", "", "Number of lock map shards to use (accepted, not needed "
           "here)"),
    Option("no_clear_on_disconnect", BOOL, "false", "n", "Do not clear locks on client disconnect"),
    Option("ipc_socket_file", STRING, "<platform specific>", "", "Path to the IPC socket file. Use "
           "an empty string to disable IPC"),
    Option("state_file", STRING, "", "s", "Keep locks over a restart, under this name in the state "
           "directory of the primary"),
    Option("password", STRING, "", "", "Password required of clients"),
    Option("tls_cert", STRING, "", "", "File containing TLS certificate"),
    Option("tls_key", STRING, "", "", "File containing TLS key"),
    Option("client_cert_verify", BOOL, "false", "", "Require and verify client TLS certificate"),
    Option("client_ca", STRING, "", "", "File containing client CA certificate. This will also "
           "enable client cert verification"),
    Option("rest_listen_address", STRING, "", "r", "Address (host:port) at which the REST server "
           "should listen; empty: none"),
    Option("rest_session_timeout", DURATION, "10m", "", "REST session idle timeout"),
)
BY_NAME: Final = {option.name: option for option in OPTIONS}
BY_SHORT: Final = {option.short: option for option in OPTIONS if option.short}


def default_socket(environ: Mapping[str, str]) -> str:
    """Where the IPC socket is if nobody says: in the folder for temporary files."""
    return str(Path(environ.get("TMPDIR") or tempfile.gettempdir()) / SOCKET_NAME)


def usage() -> str:
    """Every flag with its default, as pflag shows them."""
    rows = []
    for option in OPTIONS:
        short = f"-{option.short}, " if option.short else "    "
        kind = f" {option.kind.name}" if option.kind.name else ""
        rows.append((f"  {short}--{option.name}{kind}", option.says + _shown_default(option)))
    width = max(len(left) for left, _ in rows)
    lines = "".join(f"{left.ljust(width)}   {right}\n" for left, right in rows)
    return f"Command usage:\n{lines}"


def _shown_default(option: Option) -> str:
    if option.default in ("", "false"):
        return ""
    if option.kind is DURATION:
        return f" (default {duration.shown(duration.nanoseconds(option.default))})"
    return f' (default "{option.default}")' if option.kind is not UINT32 else \
        f" (default {option.default})"


# ---- The whole -----------------------------------------------------------------------------------


def load(words: Sequence[str], environ: Mapping[str, str]) -> Config:
    """What flags, environment and file say together. ConfigError."""
    flags = parse_flags(words)
    surroundings = _from_environment(environ)
    path = flags.get("config_file", surroundings.get("config_file", ""))
    values: dict[str, Any] = {option.name: option.kind.read(option.default) for option in OPTIONS}
    values["ipc_socket_file"] = default_socket(environ)
    if path:
        values.update(_from_file(path))
    values.update(surroundings)
    values.update(flags)
    config = Config(**values)
    _check(config)
    return config


def _check(config: Config) -> None:
    if (config.client_ca or config.client_cert_verify) and not config.tls_cert:
        raise ConfigError("net.Run() error starting server: client TLS certificate verification "
                          "requires server TLS to be configured")
    for name in ("lock_gc_interval", "rest_session_timeout", "keepalive_interval",
                 "keepalive_timeout"):
        if getattr(config, name) <= 0:
            raise ConfigError(f"{name} must be greater than 0: it is how long to wait each time")


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """Flags as pflag reads them: --x v, --x=v, -x v, -xv, -x=v, and letters together where all but
    the last are bools. Words that are no flags are passed over, as the original does; "--" ends the
    flags. ConfigError, with the usage."""
    found: dict[str, Any] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        if word == "--":
            break
        if word.startswith("--"):
            _long(word[2:], left, found)
        elif word.startswith("-") and word != "-":
            _letters(word[1:], left, found)
    return found


def _long(text: str, left: list[str], found: dict[str, Any]) -> None:
    name, equals, value = text.partition("=")
    if not name or name[0] == "-":
        raise _bad_flag(f"bad flag syntax: --{text}")
    if name == "help":
        raise ConfigError("", 0, usage=True)
    option = BY_NAME.get(name)
    if option is None:
        raise _bad_flag(f"unknown flag: --{name}")
    if not equals:
        if option.kind.bare is not None:
            value = option.kind.bare
        elif left:
            value = left.pop(0)
        else:
            raise _bad_flag(f"flag needs an argument: --{name}")
    found[option.name] = _flag_value(option, value)


def _letters(text: str, left: list[str], found: dict[str, Any]) -> None:
    rest = text
    while rest:
        letter, rest = rest[0], rest[1:]
        option = BY_SHORT.get(letter)
        if option is None:
            if letter == "h":
                raise ConfigError("", 0, usage=True)
            raise _bad_flag(f"unknown shorthand flag: '{letter}' in -{text}")
        if rest.startswith("="):
            value, rest = rest[1:], ""
        elif option.kind.bare is not None:
            value = option.kind.bare
        elif rest:
            value, rest = rest, ""
        elif left:
            value = left.pop(0)
        else:
            raise _bad_flag(f"flag needs an argument: '{letter}' in -{text}")
        found[option.name] = _flag_value(option, value)


def _flag_value(option: Option, value: str) -> Any:
    try:
        return option.kind.read(value)
    except ValueError as problem:
        called = f"-{option.short}, --{option.name}" if option.short else f"--{option.name}"
        raise _bad_flag(f'invalid argument "{value}" for "{called}" flag: {problem}') from None


def _bad_flag(text: str) -> ConfigError:
    return ConfigError(text, EXIT_FLAG, usage=True)


def _bad_config(text: str) -> ConfigError:
    return ConfigError(f"error parsing configuration: {text}")


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for option in OPTIONS:
        text = environ.get(ENVIRONMENT + option.name.upper(), "")
        if text:
            try:
                found[option.name] = option.kind.read(text)
            except ValueError as problem:
                raise _bad_config(
                    f"{ENVIRONMENT}{option.name.upper()}: {problem}") from None
    return found


# ---- The file ------------------------------------------------------------------------------------


def _from_file(path: str) -> dict[str, Any]:
    kind = os.path.splitext(path.lower())[1]
    if kind not in (".json", ".yaml", ".yml"):
        raise _bad_config(f"unsupported config file type: {os.path.basename(path)}. Supported file "
                          f"types are .json, .yml, .yaml")
    try:
        with open(path, "rb") as file:
            content = file.read(CONFIG_BYTES_MAX + 1)
    except (OSError, ValueError) as problem:
        why = problem.strerror if isinstance(problem, OSError) else problem
        raise _bad_config(f"error reading config file {path}: {why}") from None
    if len(content) > CONFIG_BYTES_MAX:
        raise _bad_config(f"config file {path} has more than {CONFIG_BYTES_MAX} bytes")
    return read_settings(content, is_json=kind == ".json")


def read_settings(content: bytes, *, is_json: bool) -> dict[str, Any]:
    """What a configuration file says, checked. ConfigError."""
    try:
        found = json.loads(content) if is_json else _yaml(content)
    except (ValueError, RecursionError) as problem:
        raise _bad_config(f"error parsing config file: {problem or 'too deep'}") from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _bad_config("error parsing config file: it must be a map of names to values")
    values: dict[str, Any] = {}
    for name, value in found.items():
        option = BY_NAME.get(name) if isinstance(name, str) else None
        if option is None:
            raise _bad_config(f"unknown configuration file field: {name}")
        try:
            values[option.name] = option.kind.read(_as_written(value))
        except ValueError as problem:
            raise _bad_config(f"error parsing config file value: {option.name}: {problem}"
                              ) from None
    return values


def _yaml(content: bytes) -> Any:
    try:
        import yaml
    except ImportError:
        raise ConfigError(f"error parsing configuration: {MISSING_YAML}") from None
    try:
        return yaml.safe_load(content)
    except yaml.YAMLError as problem:
        raise ValueError(str(problem).replace("\n", " ")) from None


def _as_written(value: object) -> str:
    """A value of the file as a flag would have it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (str, int, float)):
        return str(value)
    raise ValueError(f"{value!r} is neither text nor a number nor a truth value")
