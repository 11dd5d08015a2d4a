"""`resume=FOLDER`: settings come from the folder's settings, checked; nothing in the folder runs or is believed."""

from __future__ import annotations

import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from src.cli.entry import Entry, Work
from src.cli.resume import RESUMABLE, go_on, read_resumed
from src.config.replay import chosen_options
from src.core.errors import TERMINATED, ArtefactError, ConfigError, Paused
from src.core.logging import log_to
from src.core.paths import MANIFEST
from src.core.result_files import DRIVER_LOCK
from src.pipeline.run_folder import RunFolder, previous_resumes, single_driver
from src.tuning.identity import identity_of
from src.tuning.journal import open_journal
from src.tuning.preflight import check_search
from src.tuning.search_settings import SearchSettings, experiment
from src.tuning.search_space import SearchSpace

STARTED = ["student=gru4rec", "student.width=8", "trials=3", "seed=7"]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Commands are started in an empty folder; log files are closed at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    log_to(None)


def entry(run: Callable[[SearchSettings, Any, RunFolder], None], check: Any = lambda settings: None) -> Entry[Any]:
    return Entry("tune_student", "tune_student", "A search.", SearchSettings, lambda: Work(check, run), RESUMABLE)


def nothing(settings: SearchSettings, prepared: object, folder: RunFolder) -> None:
    """A search that ends before it has done anything."""


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a search that was begun, for copying."""
    place = tmp_path_factory.mktemp("begun")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        assert entry(nothing).execute([*STARTED, "hydra.run.dir=found"]) == 0
    log_to(None)
    return place / "found"


@pytest.fixture
def found(begun: Path, workplace: Path) -> Path:
    """A copy of that folder."""
    shutil.copytree(begun, workplace / "found")
    return workplace / "found"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def resumed(found: Path, *changes: str) -> SearchSettings:
    return read_resumed(found, "tune_student", "tune_student", SearchSettings, RESUMABLE, changes).settings


# ------------------------------------------------------------------------------------------------ where it comes from


def test_a_search_goes_on_with_its_settings_in_its_folder(found: Path) -> None:
    seen: dict[str, Any] = {}

    def run(settings: SearchSettings, prepared: object, folder: RunFolder) -> None:
        seen.update(settings=settings, where=Path.cwd(), keys=folder.replay_keys(experiment(settings)))

    composed = (found / "config" / "config.yaml").read_bytes()
    assert entry(run).execute([f"resume={found}", "trials=5", "ray.memory_mb=100"]) == 0
    settings = seen["settings"]
    assert (settings.student.architecture, settings.student.width, settings.seed) == ("gru4rec", 8, 7)
    assert (settings.trials, settings.ray.memory_mb) == (5, 100)
    assert seen["where"] == found
    assert (found / "config" / "config.yaml").read_bytes() == composed  # what it was started with, as it was
    assert yaml.safe_load((found / "settings.yaml").read_text())["trials"] == 5
    assert [line["changes"] for line in previous_resumes(found)] == [["trials=5", "ray.memory_mb=100"]]
    # and a replay starts from the same options as it would have before
    assert (seen["keys"]["student"], seen["keys"]["student.width"], seen["keys"]["seed"]) == ("gru4rec", 8, 7)
    assert "student.architecture" not in seen["keys"]
    assert "runtime.cache" not in seen["keys"]


def test_nothing_of_the_old_command_reaches_hydra(found: Path, workplace: Path) -> None:
    (workplace / "planted.py").write_text("open('planted', 'w').close()\nclass Planted: pass\n")
    command = json.loads((found / "command.json").read_text())
    planted = "hydra.callbacks.a._target_=planted.Planted"
    command["arguments"] += [f"+{planted}", planted, "--config-dir=.", "hydra/launcher=x", "student=../../../planted"]
    (found / "command.json").write_text(json.dumps(command))
    seen: list[SearchSettings] = []
    assert entry(lambda settings, prepared, folder: seen.append(settings)).execute([f"resume={found}"]) == 0
    assert seen[0].student.architecture == "gru4rec"
    assert not list(workplace.rglob("planted"))
    assert chosen_options(command["arguments"])["student"] == "gru4rec"


@pytest.mark.parametrize(
    "argument",
    [
        "hydra.callbacks.a._target_=planted.Planted",
        "+hydra.callbacks.a._target_=planted.Planted",
        "++hydra.callbacks.a._target_=planted.Planted",
        "hydra.job.chdir=false",
        "hydra/launcher=basic",
        "hydra=default",
        "hydra.searchpath=[file://x]",
        "--config-dir=x",
        "params=p.yaml",
    ],
)
@pytest.mark.parametrize("where", ["fresh", "resumed"])
def test_nobody_speaks_to_hydra_by_an_argument(found: Path, workplace: Path, argument: str, where: str) -> None:
    (workplace / "p.yaml").write_text("hydra.callbacks.a._target_: planted.Planted\n")
    before = contents(found)
    given = [f"resume={found}"] if where == "resumed" else []
    assert entry(lambda *_: pytest.fail("must not run")).execute([*given, argument]) == 2
    assert contents(found) == before


def test_what_is_checked_is_what_runs(workplace: Path) -> None:
    """A params file that changes between the check and the run changes nothing."""
    file = workplace / "p.yaml"
    file.write_text("student.width: 8\n")

    def check(settings: SearchSettings) -> None:
        file.write_text("hydra.callbacks.a._target_: planted.Planted\nstudent.width: 9\n")

    assert entry(nothing, check).execute(["params=p.yaml", "hydra.run.dir=found"]) == 0
    assert yaml.safe_load((workplace / "found" / "config" / "config.yaml").read_text())["student"]["width"] == 8


# ------------------------------------------------------------------------------------------------ what may change


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("dataset.root=moved", ("dataset", "root"), "moved"),
        ("distill.outputs_from=moved", ("distill", "outputs_from"), "moved"),
        ("runtime.cache=moved", ("runtime", "cache"), "moved"),
        ("teacher.llm=./moved", ("teacher", "llm"), "moved"),
    ],
)
def test_places_may_change(found: Path, workplace: Path, change: str, key: tuple[str, str], value: str) -> None:
    settings = resumed(found, change)
    assert str(getattr(getattr(settings, key[0]), key[1])) == str(workplace / value)
    assert settings.student.width == 8


def test_a_search_begun_without_graphs_goes_on_with_them(found: Path) -> None:
    before, after = resumed(found), resumed(found, "student.graphs=auto")
    assert [settings.student.graphs for settings in (before, after)] == ["off", "auto"]  # type: ignore[attr-defined]
    # and its study and checkpoints are the same search's
    space = SearchSpace("student", {"ndcg_20": "maximize"}, {})
    first, second = (identity_of(experiment(settings), space, settings.tuning) for settings in (before, after))
    assert first == second
    other = replace(experiment(before), seed=8)
    assert identity_of(other, space, before.tuning) != first


@pytest.mark.parametrize("change", ["student.width=9", "student=sasrec", "dataset.name=x", "seed=1", "tuning.seed=3"])
def test_what_is_searched_is_fixed(found: Path, change: str) -> None:
    with pytest.raises(ConfigError, match="is fixed"):
        resumed(found, change)


def test_trials_may_be_raised_only(found: Path) -> None:
    with pytest.raises(ConfigError, match="may be raised, not lowered: the search was started with 3"):
        resumed(found, "trials=2")
    with pytest.raises(ConfigError, match="trials"):
        resumed(found, "trials=many")


# ------------------------------------------------------------------------------------------------ one at a time


def test_a_live_search_is_refused_before_anything_is_written(found: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with single_driver(found):
        before = contents(found)
        assert entry(lambda *_: pytest.fail("must not run")).execute([f"resume={found}", "trials=9"]) == 2
        assert contents(found) == before
    assert "another search is running in it" in capfd.readouterr().out
    assert entry(nothing).execute([f"resume={found}", "trials=9"]) == 0
    assert not (found / DRIVER_LOCK).exists()


def test_the_folder_is_held_while_the_work_is_done(found: Path) -> None:
    refused: list[str] = []

    def run(settings: SearchSettings, prepared: object, folder: RunFolder) -> None:
        with folder.alone():  # as every command's work asks for it again
            try:
                with single_driver(found):
                    raise AssertionError
            except ConfigError as error:
                refused.append(str(error))

    assert entry(run).execute([f"resume={found}"]) == 0
    assert "another search is running in it" in refused[0]


def test_a_failing_check_leaves_the_folder_as_it_was(found: Path) -> None:
    def check(settings: SearchSettings) -> None:
        raise ConfigError.one("dataset.root", "x", "is missing")

    before = contents(found)
    assert entry(nothing, check).execute([f"resume={found}", "trials=9"]) == 2
    assert contents(found) == before


@pytest.mark.parametrize("name", ["driver.lock", "run.log", "study.journal", "metrics", "trials"])
def test_a_link_in_the_folder_is_refused_and_what_it_leads_to_is_whole(found: Path, workplace: Path, name: str) -> None:
    (workplace / "thesis").write_text("ten years")
    (found / name).unlink(missing_ok=True)
    (found / name).symlink_to(workplace / "thesis")
    assert entry(lambda *_: pytest.fail("must not run")).execute([f"resume={found}", "trials=9"]) == 2
    assert (workplace / "thesis").read_text() == "ten years"


@pytest.mark.parametrize(
    "name", ["trials/3/trial.log", "trials/everything/0/trial.log", "metrics/time.json", "tensorboard/trial_0000"]
)
def test_a_link_deep_in_the_folder_is_refused_too(found: Path, workplace: Path, name: str) -> None:
    (workplace / "thesis").mkdir()
    (found / name).parent.mkdir(parents=True)
    (found / name).symlink_to(workplace / "thesis")
    with pytest.raises(ArtefactError, match=f"no plain files .{name}.: what is written there"):
        resumed(found)


def test_a_pipe_in_the_folder_would_be_waited_for(found: Path) -> None:
    (found / "run.log").unlink()
    os.mkfifo(found / "run.log")
    with pytest.raises(ArtefactError, match="run.log"):
        resumed(found)


def test_links_of_other_programs_are_theirs(found: Path) -> None:
    (found / "wandb").mkdir()
    (found / "wandb" / "latest-run").symlink_to(found / "wandb")
    assert resumed(found).seed == 7


def test_another_machines_cluster_is_named_by_who_resumes(found: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What runs a search's trials answers in pickles: a prepared folder must not choose it."""
    settings = yaml.safe_load((found / "settings.yaml").read_text())
    settings["ray"]["address"] = "10.0.0.1:6379"
    (found / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match="ray.address=10.0.0.1:6379; else ray.address= for this machine"):
        resumed(found)
    assert resumed(found, "ray.address=10.0.0.1:6379").ray.address == "10.0.0.1:6379"
    assert resumed(found, "ray.address=''").ray.address == ""

    def pause(*_: Any) -> None:
        raise Paused(TERMINATED)

    again = [f"resume={found}", "ray.address=10.0.0.1:6379"]
    assert entry(pause).execute(again) == 143
    assert f"to go on: python -m src.exp.tune_student {' '.join(again)}" in capfd.readouterr().out
    # the consent is no change, and a finished search needs none: nothing of it runs
    capfd.readouterr()
    (found / MANIFEST).write_text("{}")
    for asked in (again, again[:1]):
        assert entry(pause).execute(asked) == 0
        assert "nothing is left to do" in " ".join(capfd.readouterr().out.split())
    (found / MANIFEST).unlink()
    settings["ray"]["address"] = "auto"  # what the user's own shell or machine says
    (found / "settings.yaml").write_text(yaml.safe_dump(settings))
    assert resumed(found).ray.address == "auto"


def test_the_command_that_goes_on_can_be_copied_into_a_shell(workplace: Path) -> None:
    assert go_on("tune_student", Path("/a/result_1"), None) == "python -m src.exp.tune_student resume=/a/result_1"
    said = go_on("tune_student", Path("/my project (2)/it's"), None)
    assert shlex.split(said) == ["python", "-m", "src.exp.tune_student", "resume=/my project (2)/it's"]


@pytest.mark.parametrize("name", ["study.journal.lock", "study.journal.lock0b5e3b6e.rename"])
def test_the_journals_own_lock_which_a_killed_driver_leaves_is_no_strange_link(found: Path, name: str) -> None:
    (found / name).symlink_to(found / "study.journal")
    resumed(found)
    open_journal(found)
    assert not (found / name).is_symlink()


def test_a_lock_is_never_a_link(workplace: Path) -> None:
    (workplace / "thesis").write_text("ten years")
    (workplace / DRIVER_LOCK).symlink_to(workplace / "thesis")
    with pytest.raises(ConfigError, match="cannot be written"):
        single_driver(workplace).__enter__()
    assert (workplace / "thesis").read_text() == "ten years"


@pytest.mark.parametrize(
    "key", ["tuning.sampler", "tuning.pruner", "teacher.objective", "student.architecture", "dataset.adapter"]
)
def test_code_that_lies_in_the_folder_is_not_run(
    found: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    monkeypatch.syspath_prepend(str(workplace))
    (found / "evil.py").write_text("from pathlib import Path\nPath('ran').touch()\nfactory = print\n")
    settings = yaml.safe_load((found / "settings.yaml").read_text())
    room, name = key.split(".")
    settings[room][name] = "found.evil:factory"
    if key == "student.architecture":
        settings[room] = {"architecture": "found.evil:factory", "width": 8}
    (found / "settings.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(
        (ArtefactError, ConfigError), match="is code that lies in a result folder|names code that came with it"
    ):
        check_search(resumed(found), "student", "student")
    assert not (workplace / "ran").exists()


# ------------------------------------------------------------------------------------------------ damage


DAMAGED = ["", "[]", "{}", "null", "3", '"text"', "{", "\x00", "[" * 100_000]


@pytest.mark.parametrize("content", [*DAMAGED, '{"command": null}', '{"command": "tune_student", "arguments": [3]}'])
def test_a_damaged_command(found: Path, content: str) -> None:
    (found / "command.json").write_text(content)
    with pytest.raises((ArtefactError, ConfigError)):
        resumed(found)


@pytest.mark.parametrize("content", [*DAMAGED, "a: &a [*a]", "trials: 3\ntrials: 4\n", "student: {width: 8}\n"])
def test_damaged_settings(found: Path, content: str) -> None:
    (found / "settings.yaml").write_text(content)
    with pytest.raises(ArtefactError, match="settings.yaml") as caught:
        resumed(found)
    assert caught.value.problems[0].next_step


@pytest.mark.parametrize(
    ("key", "value"),
    [("trials", None), ("trials", "3"), ("tuning", None), ("student", []), ("seed", 1.5), ("trails", 3), ("ray", 1)],
)
def test_settings_of_other_kinds(found: Path, key: str, value: object) -> None:
    content = yaml.safe_load((found / "settings.yaml").read_text())
    content[key] = value
    (found / "settings.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ArtefactError, match="settings.yaml"):
        resumed(found)


@pytest.mark.parametrize("key", ["trials", "ray", "tuning", "storage"])
def test_settings_without_a_key_that_has_a_default(found: Path, key: str) -> None:
    """As an earlier version may have written them, with the space of the search beside them."""
    content = yaml.safe_load((found / "settings.yaml").read_text())
    del content[key]
    (found / "settings.yaml").write_text(yaml.safe_dump(content))
    (found / "search_space.yaml").write_text("parameters: {}\n")
    settings = resumed(found, "trials=30", "ray.memory_mb=99", "tuning.retries=1")
    assert (settings.trials, settings.ray.memory_mb, settings.tuning.retries) == (30, 99, 1)
    assert settings.tuning.search_space == found / "search_space.yaml"


def test_a_torn_record_of_resumes_is_read_and_gone_on_with(found: Path) -> None:
    assert entry(nothing).execute([f"resume={found}", "trials=4"]) == 0
    with (found / "resumes.jsonl").open("a") as handle:
        handle.write('{"time": "2026-')
    assert entry(nothing).execute([f"resume={found}", "trials=5"]) == 0
    assert [line["changes"] for line in previous_resumes(found)] == [["trials=4"], ["trials=5"]]
    (found / "resumes.jsonl").write_text('[]\n{"time": 3}\n')
    with pytest.raises(ArtefactError, match="resumes.jsonl:1"):
        previous_resumes(found)


# ------------------------------------------------------------------------------------------------ other folders


@pytest.mark.parametrize("kind", ["file", "empty", "missing", "another command's", "a run's"])
def test_a_folder_that_holds_no_search_of_this_command(found: Path, workplace: Path, kind: str) -> None:
    place = workplace / "place"
    match kind:
        case "file":
            place.write_text("x")
        case "empty":
            place.mkdir()
        case "another command's":
            place.mkdir()
            (place / "command.json").write_text('{"command": "tune_teacher", "arguments": [], "cwd": "/"}')
        case "a run's":
            place.mkdir()
            (place / MANIFEST).write_text("{}")
    assert entry(lambda *_: pytest.fail("must not run")).execute([f"resume={place}"]) == 2
    assert not (place / DRIVER_LOCK).exists()


def test_the_winners_keys_name_the_command_that_repeats_them(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, replay_keys=lambda settings: {"student": "gru4rec", "seed": 7})
    folder.write_best_params(None, "run_distill")  # type: ignore[arg-type]
    assert (tmp_path / "best_params.yaml").read_text(encoding="utf-8") == (
        "# Replay from the repository's root:\n"
        f"#   python -m src.exp.run_distill params={tmp_path}/best_params.yaml\n"
        "student: gru4rec\nseed: 7\n"
    )


def test_what_no_command_started_cannot_be_replayed(tmp_path: Path) -> None:
    with pytest.raises(NotImplementedError, match="not started by a command"):
        RunFolder(tmp_path).write_best_params(None, "run_distill")  # type: ignore[arg-type]
    assert not (tmp_path / "best_params.yaml").exists()
