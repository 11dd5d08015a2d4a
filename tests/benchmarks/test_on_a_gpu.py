"""The runner for a GPU, and that every command it holds is understood and runs at a tiny shape."""

from __future__ import annotations

import importlib
import shlex
from pathlib import Path

import pytest

from benchmarks import on_a_gpu
from benchmarks.on_a_gpu import COMMANDS, FURTHER, Command, carry_out_all, figures

DOCS = Path(__file__).parents[2] / "docs" / "benchmarks.md"
EVERY = (*COMMANDS, *FURTHER)
SCRIPTS = [command for command in EVERY if command.module.startswith("benchmarks.")]


@pytest.mark.parametrize("command", SCRIPTS, ids=lambda command: command.name)
def test_its_words_are_options_of_its_script(command: Command) -> None:
    understood = importlib.import_module(command.module).arguments
    assert understood(shlex.split(command.words)).device == "cuda"
    assert understood(shlex.split(command.small)).device == "cpu"


@pytest.mark.parametrize(
    "name",
    [
        "gpu-facts",
        "gpu-attention",
        "gpu-steps",
        "gpu-memory",
        "training-title-base",
        "gated-step",
        "labelling-title",
        "memory-title-checkpointing",
    ],
)
def test_a_small_one_prints_a_table(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [command for command in EVERY if command.name == name]
    importlib.import_module(command.module).main(shlex.split(command.small))
    assert "| --- |" in capsys.readouterr().out


def test_names_differ_and_the_documentation_knows_each_script() -> None:
    assert len({command.name for command in EVERY}) == len(EVERY)
    text = DOCS.read_text(encoding="utf-8")
    assert all(f"`{command.module.removeprefix('benchmarks.')}`" in text for command in SCRIPTS)


def test_the_usual_ones_take_a_quarter_of_an_hour_and_students_come_first() -> None:
    assert round(sum(command.minutes for command in COMMANDS), 6) <= 15
    assert [command.name for command in COMMANDS[:3]] == ["gpu-facts", "gpu-attention", "gpu-students"]
    assert "search" in {command.name for command in COMMANDS}


def python(name: str, module: str, words: str, minutes: float = 1.0) -> Command:
    return Command(name, module, words, words, minutes, 0)


def test_neither_a_failure_nor_a_command_without_end_stops_the_rest(tmp_path: Path) -> None:
    commands = [
        python("wrong", "calendar", "--no-such-option"),
        python("endless", "timeit", "-n 1 -r 1 'while True: pass'", minutes=0.01),
        python("last", "timeit", """-n 1 -r 1 'print("| a |")'"""),
    ]
    found = carry_out_all(commands, tmp_path, small=False, minutes=1.0)
    assert [done.outcome for done in found] == ["failed (2)", "ended: out of time", "done"]
    text = (tmp_path / "summary.md").read_text(encoding="utf-8")
    # the failure's own words, and the figures of what was done
    assert "unrecognized arguments: --no-such-option" in text
    assert text.rstrip().endswith("| a |")
    assert "wrong" in (tmp_path / "wrong.txt").name
    assert (tmp_path / "last.txt").read_text(encoding="utf-8").startswith("$ python -m timeit")


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    twice = python("twice", "timeit", f'-n 1 -r 1 \'open("{mark}", "a").write("x"); print("| a |")\'')
    wrong = python("wrong", "calendar", "--no-such-option")
    for again, marks in ((False, "x"), (False, "x"), (True, "xx")):
        found = carry_out_all([wrong, twice], tmp_path / "out", small=False, minutes=1.0, again=again)
        assert [done.outcome for done in found] == ["failed (2)", "done"]
        assert mark.read_text() == marks
        assert (tmp_path / "out" / "summary.md").read_text(encoding="utf-8").rstrip().endswith("| a |")
    # another call's commands are not forgotten, and a command in another form is another one
    carry_out_all([wrong], tmp_path / "out", small=False, minutes=1.0)
    changed = python("twice", "timeit", f'-n 2 -r 1 \'open("{mark}", "a").write("x")\'')
    carry_out_all([twice], tmp_path / "out", small=False, minutes=1.0)
    assert mark.read_text() == "xx"
    carry_out_all([changed], tmp_path / "out", small=False, minutes=1.0)
    assert mark.read_text() == "xxxx"


def test_what_the_time_does_not_allow_is_not_started(tmp_path: Path) -> None:
    (done,) = carry_out_all([python("late", "calendar", "2026")], tmp_path, small=False, minutes=0.0)
    assert done.outcome == "not started: out of time"
    assert "| late | not started: out of time | 0.0 |" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_a_summary_keeps_tables_and_what_they_stand_on() -> None:
    output = "$ python\n\n2026-11-21, a GPU\nnoise\n| a |\n| --- |\n| 1 |\nnoise\nmatrix products: 3\n| b |\n"
    kept = [line for line in figures(output).splitlines() if line]
    assert kept == ["2026-11-21, a GPU", "| a |", "| --- |", "| 1 |", "matrix products: 3", "| b |"]
    assert "\n\n| a |\n| --- |\n| 1 |\n\n" in figures(output)


def test_a_folder_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert on_a_gpu.main(["--list"]) == 0
    shown = capsys.readouterr().out
    assert all(f"| {command.name} |" in shown for command in COMMANDS)
    assert f"| {FURTHER[0].name} |" not in shown
    assert on_a_gpu.main(["--list", "--all"]) == 0
    assert f"| {FURTHER[0].name} |" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        on_a_gpu.main([])
