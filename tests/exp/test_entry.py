"""Every entry point's frame: exit codes, the folder, the last line, the help."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import log_to
from src.core.paths import MANIFEST
from src.exp import (
    run_distill,
    run_eval_all,
    run_student_baseline,
    run_teacher,
    tune_distill,
    tune_student,
    tune_teacher,
)
from src.exp.door import compose_plain, format_value, groups
from src.exp.entry import LOG, Entry
from src.exp.help import _rows
from src.pipeline.run_folder import SETTINGS_FILE, RunFolder
from src.pipeline.settings import ExperimentSettings
from tests.pipeline.toy import toy_arguments

MODULES = (run_student_baseline, run_teacher, run_distill, run_eval_all, tune_student, tune_teacher, tune_distill)
ENTRIES = [module.ENTRY for module in MODULES]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Commands are started in an empty folder; log files are closed at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    log_to(None)


def finish(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
    folder.finish("test", settings.seed, {}, {"prepared": prepared})


def entry(
    run: Callable[[Any, Any, RunFolder], None] = finish, check: Callable[[Any], Any] = lambda settings: None
) -> Entry[ExperimentSettings]:
    return Entry("test", "config", "A test.", ExperimentSettings, check, run)


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "result").iterdir()) if (root / "result").exists() else []


# ------------------------------------------------------------------------------------------------------ a good run


def test_a_run_leaves_its_record_and_prints_its_path_last(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen: dict[str, Any] = {}

    def run(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
        seen.update(where=Path.cwd(), rate=settings.student.learning_rate)
        finish(settings, prepared, folder)

    assert entry(run, check=lambda settings: "ready").execute(["student.learning_rate=0.0123", "student=gru4rec"]) == 0
    (name,) = folders(workplace)
    folder = workplace / "result" / name
    assert capfd.readouterr().out.splitlines()[-1] == str(folder)
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        "config/config.yaml",
        "config/hydra.yaml",
        "config/overrides.yaml",
        "manifest.json",
        "metrics/time.json",
        LOG,
        SETTINGS_FILE,
    }
    # the override reached the code, the record and Hydra's own record
    assert seen == {"where": folder, "rate": 0.0123}
    settings = yaml.safe_load((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    assert (settings["student"]["learning_rate"], settings["student"]["architecture"]) == (0.0123, "gru4rec")
    composed = yaml.safe_load((folder / "config" / "config.yaml").read_text(encoding="utf-8"))
    assert (composed["student"]["learning_rate"], composed["student"]["architecture"]) == (0.0123, "gru4rec")
    assert '"prepared": "ready"' in (folder / MANIFEST).read_text(encoding="utf-8")
    assert Path.cwd() == workplace


def test_two_runs_of_the_same_second_do_not_share_a_folder(workplace: Path) -> None:
    again: list[int] = []

    def outer(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
        (folder.path / "mine").write_text("outer", encoding="utf-8")
        finish(settings, prepared, folder)

    def two_at_once(settings: ExperimentSettings) -> None:
        # between this run's choice of a name and its folder, another one takes the same name
        if not again:
            again.append(1)
            wanted = workplace / "result" / time.strftime("result_%Y%m%d_%H%M%S")
            for second in range(5):
                name = time.strftime("result_%Y%m%d_%H%M%S", time.localtime(time.time() + second - 2))
                (wanted.parent / name).mkdir(parents=True, exist_ok=True)

    assert entry(outer, check=two_at_once).execute([]) == 0
    assert entry(outer).execute([]) == 0
    mine = [path.parent for path in (workplace / "result").glob("*/mine")]
    assert len(mine) == 2
    assert any(path.name.endswith("_2") for path in mine)


def test_a_named_folder_may_exist_when_it_is_empty(workplace: Path) -> None:
    (workplace / "mine").mkdir()
    assert entry().execute(["hydra.run.dir=mine"]) == 0
    assert (workplace / "mine" / MANIFEST).is_file()
    assert folders(workplace) == []


@pytest.mark.parametrize("name", ["with space", "a=b", "名前", "it's [1]"])
def test_a_named_folder_may_have_any_name(workplace: Path, name: str) -> None:
    assert entry().execute([f"hydra.run.dir={format_value(name)}"]) == 0
    assert (workplace / name / MANIFEST).is_file()


# --------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    "arguments", [["student.widht=3"], ["--multirun"], ["student.width=-1", "seed=x"], ["params=nothing.yaml"]]
)
def test_bad_input_is_exit_code_2_without_traceback_or_folder(
    workplace: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert entry().execute(arguments) == 2
    shown = capfd.readouterr()
    assert "problem" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert folders(workplace) == []


def test_a_failing_check_leaves_no_folder(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def check(settings: ExperimentSettings) -> None:
        raise ConfigError.one("a", 1, "is [odd]", "make it even")

    assert entry(check=check).execute([]) == 2
    assert "a = 1: is [odd] → make it even" in capfd.readouterr().out
    assert folders(workplace) == []


def test_a_folder_that_holds_something_is_refused_and_untouched(workplace: Path) -> None:
    (workplace / "full").mkdir()
    (workplace / "full" / "thesis").write_text("ten years", encoding="utf-8")
    assert entry().execute(["hydra.run.dir=full"]) == 2
    assert [(p.name, p.read_text()) for p in (workplace / "full").iterdir()] == [("thesis", "ten years")]


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere/result"])
def test_a_place_that_cannot_be_written_is_named(
    workplace: Path, capfd: pytest.CaptureFixture[str], place: str
) -> None:
    (workplace / "file").write_text("x", encoding="utf-8")
    assert entry().execute([f"hydra.run.dir={place}"]) == 2
    assert place.split("/")[-1] in capfd.readouterr().out
    assert (workplace / "file").read_text() == "x"


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (["dataset=recbole", "dataset.root=nowhere"], "ml-100k.inter"),
        (["dataset.min_users=50", "dataset.min_items=30"], "dataset.min_items = 30"),
        (["runtime.device=gpu"], "runtime.device = 'gpu'"),
        (["runtime.cache=file"], "runtime.cache"),
        (["student=caser", "dataset.window=2"], "student.filter_sizes"),
        (["teacher.llm=./nowhere"], "teacher.llm"),
        (["distill.outputs_from=nowhere"], "nowhere"),
    ],
)
def test_what_run_distill_finds_before_anything_is_trained(
    workplace: Path, capfd: pytest.CaptureFixture[str], broken: list[str], said: str
) -> None:
    (workplace / "file").write_text("x", encoding="utf-8")
    given = [] if broken[0] == "dataset=recbole" else toy_arguments(workplace)
    assert run_distill.ENTRY.execute([*given, *broken]) == 2
    assert said in capfd.readouterr().out
    assert folders(workplace) == []
    assert not list((workplace / "cache").glob("*"))


def test_problems_of_different_rooms_are_reported_together(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    broken = ["dataset=recbole", "dataset.root=nowhere", "teacher.llm=./gone", "runtime.device=gpu"]
    more = ["tuning.metric=ndcg_7", "tuning.search_space=gone.yaml", "runtime.cache=cache"]
    assert tune_distill.ENTRY.execute([*broken, *more]) == 2
    out = capfd.readouterr().out
    assert "5 problems" in out
    for part in ("ml-100k.inter", "teacher.llm", "runtime.device", "tuning.metric", "gone.yaml"):
        assert part in out


# ------------------------------------------------------------------------------------------------- failing runs


def test_a_failing_run_keeps_its_folder_without_a_manifest(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
        raise TrainingFailed("the loss is [nan]")

    assert entry(run).execute([]) == 1
    (name,) = folders(workplace)
    folder = workplace / "result" / name
    assert not (folder / MANIFEST).exists()
    assert "TrainingFailed" in (folder / LOG).read_text(encoding="utf-8")
    shown = capfd.readouterr()
    assert "error: the loss is [nan]" in shown.out
    assert "Traceback" not in shown.out + shown.err
    assert Path.cwd() == workplace


def test_an_interrupted_run_is_exit_code_130(workplace: Path) -> None:
    def run(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
        raise KeyboardInterrupt

    assert entry(run).execute([]) == 130
    assert not (workplace / "result" / folders(workplace)[0] / MANIFEST).exists()


def test_a_bug_is_not_a_success(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
        raise ZeroDivisionError("a bug")

    with pytest.raises(SystemExit) as caught:
        entry(run).execute([])
    assert caught.value.code == 1
    assert "a bug" in capfd.readouterr().err
    assert not (workplace / "result" / folders(workplace)[0] / MANIFEST).exists()


# ----------------------------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("command", ENTRIES, ids=lambda command: command.command)
def test_what_help_shows_is_what_the_command_line_reads(command: Entry[Any]) -> None:
    content, _ = compose_plain(command.config_name, [])
    for key, shown, _ in _rows(command.schema, content):
        value = content
        for part in key.split("."):
            value = value[part]
        (argument,) = shlex.split(f"{key}={shown}".replace('""', "'\"\"'"))  # as a shell hands it on
        assert OverridesParser.create().parse_override(argument).value() == value, argument


@pytest.mark.parametrize("command", ENTRIES, ids=lambda command: command.command)
def test_help_lists_every_key_with_its_note(
    workplace: Path, capfd: pytest.CaptureFixture[str], command: Entry[Any]
) -> None:
    assert command.execute(["--help"]) == 0
    shown = capfd.readouterr().out
    words = set(shown.split())
    content, _ = compose_plain(command.config_name, [])
    rows = list(_rows(command.schema, content))
    assert len(rows) >= 6
    for key, _, note in rows:
        assert key in words, key
        assert note.split()[0] in words, key
    assert ":factory" in shown or command.command in ("run_student_baseline", "run_eval_all", "tune_student")
    assert f"python -m src.exp.{command.command}" in shown
    section = shown.split("Groups", 1)[1].split("params=FILE", 1)[0]
    assert set(re.findall(r"^  (\w+): ", section, re.MULTILINE)) == set(groups(command.config_name))
    searching = {"trials", "warm_start", "resume", "storage", "dashboard", "reopen_test", "protocol"}
    assert set(groups(command.config_name)) == set(content) - {"seed", "export_dllm2rec", "results"} - searching
    assert folders(workplace) == []
