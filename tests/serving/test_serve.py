"""Before the first request: folders, catalogues, host and token, the port."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from src.core.errors import ConfigError
from src.exp.serve import ENTRY
from src.serving.serve import ServeSettings, bind, check_serve, is_own_machine, read_token
from tests.serving.finished import finished, id_map, student


def fields(settings: ServeSettings) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        check_serve(settings)
    return [problem.field for problem in caught.value.problems]


def test_students_of_one_catalogue_are_served_under_names_of_their_own(transitions: Path, popularity: Path) -> None:
    plan = check_serve(ServeSettings(student=popularity, students=(transitions, transitions), port=0))
    with plan.bound:
        assert [one.name for one in plan.students] == ["popularity", "transitions", "transitions (2)"]
        assert plan.bound.getsockname()[0] == "127.0.0.1"


def test_what_cannot_be_served_is_told_together(transitions: Path, tmp_path: Path) -> None:
    assert fields(ServeSettings(host="0.0.0.0", port=0)) == ["student", "host"]
    assert fields(ServeSettings(student=tmp_path / "none", port=0)) == ["folder"]
    (tmp_path / "token").write_text("short")
    assert fields(ServeSettings(student=transitions, token_file=tmp_path / "token", port=0)) == ["token_file"]
    assert fields(ServeSettings(student=transitions, host="no such host", port=0)) == ["host"]


def test_students_of_two_catalogues_are_refused(transitions: Path, tmp_path: Path) -> None:
    other = finished(tmp_path / "other", student("popularity", num_items=30), id_map(30))
    assert fields(ServeSettings(students=(transitions, other), port=0)) == ["students"]


def test_a_port_in_use_is_refused_with_code_2(
    transitions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert ENTRY.execute([f"student={transitions}", f"port={port}"]) == 2
    shown = capfd.readouterr().out
    assert f"port = {port}: cannot be listened on" in shown
    assert "port=0" in shown
    assert list(tmp_path.iterdir()) == []


def test_a_port_that_was_given_back_can_be_taken_again() -> None:
    with bind("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with bind("127.0.0.1", port) as again:
        assert again.getsockname()[1] == port


def test_a_token_is_one_word_of_a_file(tmp_path: Path) -> None:
    assert read_token(None) is None
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    assert read_token(path) == "0123456789abcdef"
    for content in (b"", b"0123456789 abcdef0", "ключключключключ".encode()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="token_file"):
            read_token(path)


def test_only_addresses_of_this_machine_need_no_token() -> None:
    own = {host: is_own_machine(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "0.0.0.0", "::", "h")}
    assert own == {
        "127.0.0.1": True, "127.1.2.3": True, "::1": True, "localhost": True, "0.0.0.0": False, "::": False, "h": False
    }  # fmt: skip
