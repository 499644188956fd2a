"""What a drill writes down is read as it was written, also by the next version of a reader."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path
from typing import Any

import pytest

from dlock.drill import records
from dlock.drill.records import KINDS_OF_RECORD, Record, RecordError, Writer

OF_TYPE: dict[str, Any] = {
    "int": 2**62, "str": "a \"line\"\nand é", "bool": True, "float": 0.25, "list[str]": ["x", "y"]}


def some(kind: type[Record], t_ns: int = 1) -> Record:
    """A record of this kind with something in every field."""
    values = {field.name: OF_TYPE[str(field.type)] for field in dataclasses.fields(kind)}
    return kind(**{**values, "t_ns": t_ns})


@pytest.mark.parametrize("kind", KINDS_OF_RECORD.values(), ids=lambda kind: kind.what)
def test_a_record_is_read_as_it_was_written(kind: type[Record], tmp_path: Path) -> None:
    writer = Writer(tmp_path / f"one{records.SUFFIX}")
    writer.write(some(kind))
    writer.close()
    assert records.read(tmp_path) == [some(kind)]


def test_every_record_says_what_it_is() -> None:
    for kind in KINDS_OF_RECORD.values():
        assert kind.__doc__, kind
        assert kind.what
    assert len(KINDS_OF_RECORD) == len(Record.__subclasses__())


def test_files_come_together_in_order_of_time(tmp_path: Path) -> None:
    for name, times in (("b", (4, 1)), ("a", (3, 2))):
        writer = Writer(tmp_path / f"{name}{records.SUFFIX}")
        for t_ns in times:
            writer.write(some(records.Told, t_ns))
        writer.close()
    (tmp_path / "log").write_text("no record")
    assert [one.t_ns for one in records.read(tmp_path)] == [1, 2, 3, 4]


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / f"all{records.SUFFIX}"
    writer = Writer(path)
    threads = [
        threading.Thread(target=lambda: [writer.write(some(records.Hold)) for _ in range(200)])
        for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert list(records.read_file(path)) == [some(records.Hold)] * 800


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    line = records.to_line(some(records.Write))
    (tmp_path / f"one{records.SUFFIX}").write_text(line + line[:20])
    assert records.read(tmp_path) == [some(records.Write)]


@pytest.mark.parametrize("line", [
    "", "no json", "[]", '{"what": "nothing", "t_ns": 1}', '{"t_ns": 1}',
    '{"what": "primary-ready", "t_ns": 1}'])
def test_what_is_no_record_is_refused(line: str) -> None:
    with pytest.raises(RecordError, match="no record"):
        records.from_line(line)


def test_a_token_says_its_epoch() -> None:
    assert records.epoch_of((7 << 43) + 12345) == 7
