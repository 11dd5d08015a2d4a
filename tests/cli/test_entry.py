"""Every entry point's frame: exit codes, the folder, the last line, the help."""

from __future__ import annotations

import errno
import gc
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.cli.entry import Entry, Work
from src.cli.help import rows
from src.config.base_configs import SCHEMAS, description
from src.config.composition import compose_plain, groups
from src.config.overrides import format_value
from src.config.reading import read_config, read_settings
from src.core.errors import ConfigError, TrainingFailed
from src.core.logging import console, log_to
from src.core.paths import MANIFEST, REPOSITORY
from src.core.result_files import RUN_LOG, SETTINGS_FILE
from src.exp import (
    run_distill,
    run_eval_all,
    run_student_baseline,
    run_teacher,
    tune_distill,
    tune_student,
    tune_teacher,
)
from src.pipeline.run_folder import RunFolder
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
    return Entry("test", "config", "A test.", ExperimentSettings, lambda: Work(check, run))


def folders(root: Path) -> list[str]:
    return sorted(path.name for path in (root / "result").iterdir()) if (root / "result").exists() else []


def test_a_full_disk_is_one_line_and_exit_code_1(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(settings: object, prepared: object, folder: RunFolder) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder.path / "ranks.csv"))

    assert entry(run).execute([]) == 1
    shown = " ".join(capfd.readouterr().out.split())
    assert "the disk is full" in shown
    assert "Traceback" not in shown


@pytest.mark.parametrize("damage", ["a folder in a file's place", "a file in a folder's place"])
def test_a_place_that_cannot_be_used_is_one_line_and_exit_code_1(
    workplace: Path, capfd: pytest.CaptureFixture[str], damage: str
) -> None:
    def run(settings: object, prepared: object, folder: RunFolder) -> None:
        if damage == "a folder in a file's place":
            (folder.path / "metrics" / "time.json" / "theirs").mkdir(parents=True)
        else:
            (folder.path / "metrics").write_text("theirs")
        folder.write_metrics("time", {})

    search = replace(entry(run), resumable=frozenset({"trials"}))
    assert search.execute([]) == 1
    shown = " ".join(capfd.readouterr().out.split())
    assert re.search(r"error: \S+/metrics(/time.json)? cannot be used", shown)
    assert "to go on: python -m src.exp.test resume=" in shown
    assert "Traceback" not in shown


def test_a_place_that_cannot_be_used_is_told_before_there_is_a_folder_too(
    workplace: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (workplace / "cache").write_text("theirs")

    def check(settings: object) -> None:
        (workplace / "cache" / "student").mkdir(parents=True)

    assert entry(finish, check).execute([]) == 1
    assert "cannot be used (Not a directory)" in " ".join(capfd.readouterr().out.split())
    assert folders(workplace) == []


def test_a_defect_is_no_place_at_fault(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run(settings: object, prepared: object, folder: RunFolder) -> None:
        (folder.path / "nothing").read_text()

    with pytest.raises(SystemExit):  # Hydra's way to end
        entry(run).execute([])
    assert "Traceback" in capfd.readouterr().err


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
        RUN_LOG,
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


def test_garbage_is_collected_from_the_check_on_and_not_while_modules_are_imported(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[str, bool]] = []

    def note(what: str) -> None:
        found.append((what, gc.isenabled()))

    def work() -> Work[Any, Any]:
        note("import")
        return Work(lambda settings: note("check"), lambda settings, prepared, folder: finish(settings, None, folder))

    monkeypatch.setattr(sys, "argv", ["test"])
    monkeypatch.setattr("src.cli.entry.steady_standard_streams", lambda: None)  # those of pytest are its own
    with pytest.raises(SystemExit) as left:
        Entry("test", "config", "A test.", ExperimentSettings, work).main()
    assert (left.value.code, found) == (0, [("import", False), ("check", True)])


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
    assert "TrainingFailed" in (folder / RUN_LOG).read_text(encoding="utf-8")
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
def test_help_fits_one_screen(
    workplace: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: Entry[Any]
) -> None:
    monkeypatch.setattr(console, "_width", 100)
    assert command.execute(["--help"]) == 0
    shown = capfd.readouterr().out
    # an example may be longer than a line: it is there to be copied
    assert len(shown.splitlines()) <= 40
    assert f"python -m src.exp.{command.command}" in shown
    examples = shown.split("Examples", 1)[1].split("Groups", 1)[0]
    assert len(command.examples) == 5
    assert all(f"{arguments or '(none)'} " in examples for arguments, _ in command.examples)
    content, _ = compose_plain(command.config_name, [])
    named = set(re.findall(r"^(\w+)  ", shown.split("Groups", 1)[1], re.MULTILINE))
    assert named == set(groups(command.config_name)) == {key for key, held in content.items() if isinstance(held, dict)}
    own = shown.split("(--help KEY): ", 1)[1].split("params=FILE", 1)[0].split()
    assert {key.rstrip(",") for key in own} == set(content) - named
    assert folders(workplace) == []


@pytest.mark.parametrize("command", ENTRIES, ids=lambda command: command.command)
def test_the_examples_of_the_help_are_accepted(workplace: Path, command: Entry[Any]) -> None:
    (workplace / "result" / "result_A").mkdir(parents=True)
    (workplace / "result" / "result_A" / "best_params.yaml").write_text("distill.lam: 0.25\n", encoding="utf-8")
    for arguments, _ in command.examples:
        given = shlex.split(arguments) or (["results=[a]"] if command is run_eval_all.ENTRY else [])
        read_settings(command.config_name, given, command.schema)


@pytest.mark.parametrize("command", ENTRIES, ids=lambda command: command.command)
def test_help_of_a_group_and_of_all_lists_every_key_with_its_note(
    capfd: pytest.CaptureFixture[str], command: Entry[Any]
) -> None:
    content, _ = compose_plain(command.config_name, [])
    every = list(rows(description(command.config_name)["settings"], content))
    assert len(every) >= 6
    # a group that an earlier command has too was looked at there
    earlier = [description(other.config_name)["settings"]["fields"] for other in ENTRIES[: ENTRIES.index(command)]]
    for topic in (*(topic for topic in content if not any(topic in known for known in earlier)), "all"):
        assert command.execute(["--help", topic] if topic == "runtime" else [f"--help={topic}"]) == 0
        shown = capfd.readouterr().out
        found = set(re.findall(r"^(\S+)", shown, re.MULTILINE))
        wanted = [row for row in every if topic in ("all", row[0].split(".")[0])]
        assert {key for key, _, _ in wanted} <= found
        assert {note.split()[0] for _, _, note in wanted} <= set(shown.split())


def test_help_of_a_group_names_all_its_options(capfd: pytest.CaptureFixture[str]) -> None:
    assert tune_distill.ENTRY.execute(["--help", "dataset"]) == 0
    said = " ".join(capfd.readouterr().out.split())
    assert f"options (dataset=…): {', '.join(groups('tune')['dataset'])}" in said
    # one option is no choice
    assert tune_distill.ENTRY.execute(["--help", "ray"]) == 0
    assert "options" not in capfd.readouterr().out


def test_help_of_a_key_below_a_group_and_of_a_last_part(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_distill.ENTRY.execute(["--help", "student.loop"]) == 0
    shown = capfd.readouterr().out
    assert "student.loop.epochs" in shown
    assert "student.width" not in shown
    assert "teacher.train.loop" not in shown
    assert run_distill.ENTRY.execute(["-h", "lora"]) == 0
    assert "teacher.lora.rank" in capfd.readouterr().out
    assert run_distill.ENTRY.execute(["--help", "student"]) == 0
    assert capfd.readouterr().out.startswith("student: Pre-norm blocks over a window of any length.\n")


def test_help_shows_the_values_that_the_other_arguments_choose(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_distill.ENTRY.execute(["teacher=title", "--help", "teacher.objective", "seed=3"]) == 0
    assert re.search(r"^teacher.objective +title_lm ", capfd.readouterr().out, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--help", "tracher"], "did you mean teacher?"),
        (["--help", "student.widht"], "did you mean student.width?"),
        (["--help", "student.widht=3"], "did you mean student.width?"),
        (["--cfg"], "write --cfg job"),
        (["--cfg", "hydra"], "write --cfg job"),
        (["--cfg=all"], "write --cfg job"),
        (["--cfg", "job", "student=gruu4rec"], "did you mean gru4rec?"),
        (["--multirun", "seed=1"], "tune_distill"),
        (["-m"], "tune_distill"),
        (["--config-name=tune"], "params=FILE"),
        (["-cn", "seed=1"], "params=FILE"),
        (["--student.width=8"], "write student.width=8, without dashes"),
        (["--epochs", "seed=1"], "write epochs=VALUE, without dashes"),
        (["--push-to-hub=me/mine"], "write push_to_hub=me/mine, without dashes"),
        (["--"], "see --help"),
        (["seed", "3"], "override = 'seed': names no value"),
        (["seed:3"], "override = 'seed:3': names no value"),
    ],
)
def test_habits_from_elsewhere_get_an_answer(
    workplace: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run_distill.ENTRY.execute(arguments) == 2
    assert said in capfd.readouterr().out
    assert folders(workplace) == []


@pytest.mark.parametrize("command", ENTRIES, ids=lambda command: command.command)
def test_what_help_shows_is_what_the_command_line_accepts(command: Entry[Any]) -> None:
    content, _ = compose_plain(command.config_name, [])
    arguments = [f"{key}={value}" for key, value, _ in rows(description(command.config_name)["settings"], content)]
    assert read_config(command.config_name, arguments) == content


def test_text_that_looks_like_something_else_is_quoted(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_distill.ENTRY.execute(["dataset.name='7'", "dataset.min_rating=null", "--help", "dataset"]) == 0
    shown = capfd.readouterr().out
    assert re.search(r'^dataset.name +"7" ', shown, re.MULTILINE)
    assert re.search(r"^dataset.min_rating +null ", shown, re.MULTILINE)
    assert ":factory:" not in shown  # that note stands elsewhere:
    assert run_distill.ENTRY.execute(["--help", "active"]) == 0
    assert "package.module:factory: a policy" in " ".join(capfd.readouterr().out.split())


def test_cfg_job_prints_the_composed_config(workplace: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for asked in (["--cfg", "job"], ["--cfg=job"], ["-c", "job"]):
        assert run_distill.ENTRY.execute(["student=caser", *asked, "distill.lam=0.25"]) == 0
        printed = yaml.safe_load(capfd.readouterr().out)
        assert printed == compose_plain("config", ["student=caser", "distill.lam=0.25"])[0]
        assert (printed["student"]["architecture"], printed["distill"]["lam"]) == ("caser", 0.25)
    assert folders(workplace) == []


# --------------------------------------------------------------------------------------------------- a fast answer

HEAVY = ("torch", "numpy", "pandas", "transformers", "peft", "tokenizers", "ray", "optuna", "tensorboard", "plotly")


def imported_by(program: str, folder: Path) -> tuple[str, list[str]]:
    """What a program printed, and which heavy packages it had imported in the end."""
    tell = f"\nimport sys\nprint(*[name for name in {HEAVY!r} if name in sys.modules], sep=',')\n"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    line = [sys.executable, "-c", program + tell]
    done = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    *printed, heavy = done.stdout.splitlines()
    return "\n".join(printed), heavy.split(",") if heavy else []


def test_help_and_a_typo_are_answered_before_anything_heavy_is_imported(workplace: Path) -> None:
    names = [command.command for command in ENTRIES]
    asked = [["--help"], ["runtime.devise=cpu"], ["runtime=defualt"]]
    # what does not depend on the command
    asked_once = [["--help", "runtime"], ["--help=student"], ["--cfg", "job"], ["--fast"], ["params=gone"]]
    for config_name in SCHEMAS:
        description.__wrapped__(config_name)  # what a first run leaves
    program = (
        f"import importlib\nfor name in {names!r}:\n"
        "    entry = importlib.import_module(f'src.exp.{name}').ENTRY\n"
        f"    for arguments in {asked!r}:\n        entry.execute(arguments)\n"
        f"for arguments in {asked_once!r}:\n    entry.execute(arguments)\n"
    )
    printed, heavy = imported_by(program, workplace)
    assert heavy == []
    assert printed.count("did you mean runtime.device?") == printed.count("did you mean default?") == len(names) == 7


def test_a_student_is_trained_without_a_language_model(workplace: Path) -> None:
    program = (
        "from src.exp.run_student_baseline import ENTRY\n"
        f"assert ENTRY.execute({toy_arguments(workplace, 'student.loop.epochs=1')!r}) == 0\n"
    )
    _, heavy = imported_by(program, workplace)
    assert "torch" in heavy
    assert set(heavy).isdisjoint({"transformers", "peft", "tokenizers", "ray", "optuna", "plotly"})


def test_a_heavy_import_would_be_seen(workplace: Path) -> None:
    assert imported_by("import numpy", workplace)[1] == ["numpy"]


# ----------------------------------------------------------------------------------- terminals that are not there

#: a run that says and logs a lot, as `main` starts it
TALKATIVE = """
import logging
import sys
from types import ModuleType
from src.cli.entry import Entry, Work
from src.core.logging import console
from src.data.settings import DescribeSettings

# what a manifest says of the machine has nothing to do with the screen, and takes the import of torch
machine = ModuleType("src.core.hardware")
machine.hardware = machine.package_versions = dict
machine.command_line = list
sys.modules[machine.__name__] = machine

def run(settings, prepared, folder):
    for number in range(300):
        logging.getLogger("src.test").info("line %d → 名前", number)
        console.print(f"• {number} " + "x" * 200)
    folder.finish("test", 7, {}, {})

Entry("test", "describe", "A test.", DescribeSettings, lambda: Work(lambda settings: None, run)).main()
"""


def talk(folder: Path, redirection: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the talkative command in a shell that does something to its streams."""
    (folder / "talk.py").write_text(TALKATIVE, encoding="utf-8")
    line = ["bash", "-c", f'set -o pipefail; "$0" talk.py hydra.run.dir=out {redirection}', sys.executable]
    variables = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
    return subprocess.run(line, cwd=folder, env=variables, capture_output=True, check=False)


@pytest.mark.parametrize(
    ("redirection", "last"),
    [
        ("| true", b"out"),
        ("2>&1 | true", None),
        (">/dev/full", b"out"),
        (">/dev/full 2>&1", None),
        (">&-", None),
        (">&- 2>&- <&-", None),
    ],
)
def test_a_run_outlives_its_screen(workplace: Path, redirection: str, last: bytes | None) -> None:
    done = talk(workplace, redirection)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    log = (workplace / "out" / RUN_LOG).read_text(encoding="utf-8").splitlines()
    assert [line.split("src.test: ")[1] for line in log if "src.test: " in line] == [
        f"line {number} → 名前" for number in range(300)
    ]
    assert not [line for line in log if "xxx" in line]  # what was meant for the screen did not land in the log
    assert (workplace / "out" / MANIFEST).is_file()
    if last is not None:  # told where somebody may still read it
        assert done.stderr.splitlines()[-1].endswith(b"/out")


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
def test_an_ascii_terminal_is_told_in_ascii(workplace: Path, environment: dict[str, str]) -> None:
    done = talk(workplace, "", **environment)
    assert done.returncode == 0
    shown = done.stdout.decode("ascii").splitlines()
    assert shown[-1] == str(workplace / "out")
    assert any(r"line 7 -> \u540d\u524d" in line for line in shown)
    assert "line 299 → 名前" in (workplace / "out" / RUN_LOG).read_text(encoding="utf-8")


def hang_up(settings: ExperimentSettings, prepared: object, folder: RunFolder) -> None:
    os.kill(os.getpid(), signal.SIGHUP)
    finish(settings, prepared, folder)


@pytest.fixture
def handlers() -> Any:
    """The signals' handlers as on a terminal, whatever these tests were started from; restored at the end."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield dict.fromkeys(before, signal.SIG_DFL)
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_run_goes_on_when_its_terminal_is_closed(workplace: Path, handlers: dict[int, Any]) -> None:
    assert entry(hang_up).execute([]) == 0
    assert (workplace / "result" / folders(workplace)[0] / MANIFEST).is_file()
    assert signal.getsignal(signal.SIGHUP) == handlers[signal.SIGHUP]


def test_a_search_pauses_when_its_terminal_is_closed(
    workplace: Path, capfd: pytest.CaptureFixture[str], handlers: dict[int, Any]
) -> None:
    search = replace(entry(hang_up), resumable=frozenset({"trials"}))
    assert search.execute([]) == 129
    shown = capfd.readouterr().out
    assert "paused: the terminal was closed" in shown
    assert "to go on: python -m src.exp.test resume=" in shown
    assert signal.getsignal(signal.SIGHUP) == handlers[signal.SIGHUP]


def test_a_search_under_nohup_goes_on(workplace: Path, handlers: dict[int, Any]) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert replace(entry(hang_up), resumable=frozenset({"trials"})).execute([]) == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
