"""Standard streams that cannot end a run."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from src.core.logging import is_terminal, say_last
from src.core.standard_streams import lost_because, steady


@pytest.fixture
def pipe() -> Iterator[tuple[io.FileIO, int]]:
    """A pipe's reading end, and the descriptor of its writing end."""
    reading, writing = os.pipe()
    with io.FileIO(reading) as reader, io.FileIO(writing, "w") as writer:
        yield reader, writer.fileno()


def test_what_is_written_arrives(pipe: tuple[io.FileIO, int]) -> None:
    stream = steady(pipe[1], "utf-8")
    stream.write("a → b\n")
    assert pipe[0].read(100) == "a → b\n".encode()
    assert lost_because(stream) is None


def test_a_dead_reader_is_noticed_and_the_descriptor_leads_to_nowhere(pipe: tuple[io.FileIO, int]) -> None:
    stream = steady(pipe[1], "utf-8")
    pipe[0].close()
    for number in range(3):
        print(f"line {number}", file=stream)
        stream.flush()
    assert lost_because(stream) == "Broken pipe"
    assert os.write(pipe[1], b"a child writes too") == 18
    stream.close()


def test_a_full_device() -> None:
    descriptor = os.open("/dev/full", os.O_WRONLY)
    stream = steady(descriptor, "utf-8")
    stream.write("x" * 100_000 + "\n")
    assert lost_because(stream) == "No space left on device"
    stream.close()
    os.close(descriptor)


def test_a_reader_that_does_not_keep_up_loses_text_and_nothing_else(pipe: tuple[io.FileIO, int]) -> None:
    os.set_blocking(pipe[1], False)
    stream = steady(pipe[1], "utf-8")
    stream.write("x" * 1_000_000 + "\n")
    assert lost_because(stream) is None
    assert len(pipe[0].read(2_000_000)) >= 4096
    stream.write("again\n")
    assert pipe[0].read(2_000_000).endswith(b"again\n")


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("a → b • c…", "ascii", b"a -> b * c..."),
        ("名前", "ascii", rb"\u540d\u524d"),
        ("é → 名", "latin-1", b"\xe9 -> \\u540d"),
        ("a\udce9b", "utf-8", rb"a\udce9b"),  # a byte of a file's name that is no UTF-8
    ],
)
def test_signs_that_a_terminal_does_not_have(
    pipe: tuple[io.FileIO, int], text: str, encoding: str, shown: bytes
) -> None:
    stream = steady(pipe[1], encoding)
    stream.write(text)
    stream.flush()
    assert pipe[0].read(100) == shown


def test_the_last_line_goes_to_stderr_where_standard_output_is_lost(
    pipe: tuple[io.FileIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe[0].close()
    said = io.StringIO()
    monkeypatch.setattr(sys, "stdout", steady(pipe[1], "utf-8"))
    monkeypatch.setattr(sys, "stderr", said)
    say_last("result/here")
    assert said.getvalue() == "result/here\n"


def test_a_closed_standard_output_is_no_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert not is_terminal()
    with (tmp_path / "out").open("w", encoding="utf-8") as file:
        pass
    monkeypatch.setattr(sys, "stdout", file)
    assert not is_terminal()
