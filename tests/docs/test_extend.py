"""The worked examples of `docs/extend/`: taken from the pages as they stand, put where they say, and run."""

from __future__ import annotations

import importlib
import math
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import src.config.base_configs as base_configs
import src.config.composition as composition
import src.student.architectures as architectures_package
from src.config.descriptions import describe_command
from src.config.overrides import format_value
from src.config.reading import read_settings
from src.core.documents import read_json_document
from src.core.errors import ConfigError
from src.core.paths import REPOSITORY
from src.core.settings import nested_plain
from src.data.id_map import IdMap
from src.data.tensor_examples import TensorExamples
from src.evaluation import coverage
from src.evaluation.coverage import summarise_lists
from src.pipeline.cache import StageCache
from src.pipeline.preflight import check_experiment
from src.pipeline.runs import run_distill, run_student_baseline
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.artefact import load_student
from src.student.base import ARCHITECTURES
from src.student.models import architectures, build_student
from src.teacher.labelling.cache import asked_of_a_row
from src.teacher.labelling.selection import choose_rows
from src.teacher.settings import ExportSettings
from src.teacher.title_lm.ranking_ways import ranking_way
from src.tuning.journal import open_journal
from src.tuning.samplers import make_sampler, sampling_problems
from src.tuning.search_space import FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.space_document import load_search_space
from src.tuning.study import Record
from src.tuning.trial_values import apply_values
from tests.fixtures import cycle_data, student_of
from tests.pipeline.toy import BASELINES, WORLD, new_run, write_given_outputs
from tests.teacher.builders import CPU
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal, title_teacher_of

PAGES = REPOSITORY / "docs" / "extend"
SMALL = ["student.width=8", "student.loop.epochs=2", "student.loop.batch_size=64"]


def files_of(page: str) -> dict[str, str]:
    """The files that a page shows: a path in backticks on a line of its own, and the block below it."""
    text = (PAGES / page).read_text(encoding="utf-8")
    found = re.findall(r"^`([^`\n]+)`[^\n]*:\n\n```\w+\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    assert found, page
    return dict(found)


def write(folder: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("a", encoding="utf-8") as file:  # "more lines" of a file that is there
            file.write(content)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder where the pages' files are put: its `conf/`, its architectures and its modules are this program's."""
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    monkeypatch.setattr(composition, "CONF", tmp_path / "conf")
    monkeypatch.syspath_prepend(tmp_path)
    inside = str(tmp_path / "src" / "student" / "architectures")
    monkeypatch.setattr(architectures_package, "__path__", [*architectures_package.__path__, inside])
    architectures()  # all of this project's register before one more does
    known, modules = dict(ARCHITECTURES), set(sys.modules)
    for cached in (composition.groups, composition.known_keys, architectures):
        cached.cache_clear()  # type: ignore[attr-defined]
    yield tmp_path
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    for cached in (composition.groups, composition.known_keys, architectures):
        cached.cache_clear()  # type: ignore[attr-defined]


def settings_in(folder: Path, *overrides: str) -> ExperimentSettings:
    """A small world's settings, as the command line makes them."""
    cache = f"runtime.cache={format_value(str(folder / 'cache'))}"
    described = describe_command(ExperimentSettings)  # the students that were added since
    keys = [*WORLD, *BASELINES, "runtime.device=cpu", cache, *overrides]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_configs, "description", lambda _: described)
        return read_settings("config", keys, ExperimentSettings)[0]


def contract_holds(file: Path) -> None:
    """Run a test file of a page."""
    assert pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", str(file)]) == 0


# --------------------------------------------------------------------------------------------- a student of one's own


OWN = ["student=own", "student.architecture=my_students:factory", "student.options={depth: 2}", "student.prior=linear"]


def test_a_student_of_ones_own_from_the_command_line_to_a_distilled_model(place: Path) -> None:
    write(place, files_of("add_a_student.md"))
    settings = settings_in(place, *OWN, *SMALL)
    stages = check_experiment(settings, teacher=False)
    run_student_baseline(stages, new_run(place / "alone"))
    loaded, found = load_student(place / "alone" / "best_student", stages.data)
    assert found == settings.student
    assert type(loaded).__name__ == "MeanStudent"
    assert len(loaded.layers) == 2  # type: ignore[arg-type]
    assert loaded.prior is not None  # type: ignore[union-attr]

    outputs = write_given_outputs(place / "outputs", stages.data)
    taught = settings_in(place, *OWN, *SMALL, f"distill.outputs_from={outputs}", "distill.ed_weight=0.3")
    again = Stages(taught, StageCache(taught.runtime.cache, True))
    run_distill(again, new_run(place / "taught"))
    student, _ = load_student(place / "taught" / "best_student", again.data)
    assert student.state_dict().keys() == loaded.state_dict().keys()
    assert any(record.name == "student_baseline" and record.reused for record in again.cache.records)


def test_its_options_can_be_searched(place: Path) -> None:
    write(place, files_of("add_a_student.md"))
    settings = settings_in(place, *OWN, *SMALL)
    content = "stage: student\nmetric: ndcg_20\nparameters:\n  student.options.depth: {type: int, low: 1, high: 3}\n"
    (place / "space.yaml").write_text(content, encoding="utf-8")
    load_search_space(place / "space.yaml", nested_plain(settings), ("ndcg_20",))
    deeper = apply_values(settings, {"student.options.depth": 3}).student
    assert len(build_student(deeper, 12, 5).layers) == 3  # type: ignore[arg-type]


def test_a_student_of_ones_own_passes_the_contract(place: Path) -> None:
    files = files_of("add_a_student.md")
    write(place, files)
    contract_holds(place / "tests" / "test_my_student.py")


BROKEN = """
import torch
from src.student.base import SequenceStudent

class Student(SequenceStudent):
    def __init__(self, settings, num_items, window):
        super().__init__(settings, num_items, window, settings.width)

class Wide(Student):
    def encode(self, history, length, extra=None):
        return torch.zeros(len(history), self.representation + 1)

class Infinite(Student):
    def encode(self, history, length, extra=None):
        return self.embed(history, extra).sum(dim=1) / length.unsqueeze(1)

def other_arguments(settings): ...

def nothing(settings, num_items, window): ...

def other_items(settings, num_items, window):
    return Student(settings, num_items + 1, window)

number = 3
"""


@pytest.mark.parametrize(
    ("factory", "said"),
    [
        ("nowhere:factory", "cannot be found"),
        ("broken:absent", "cannot be found"),
        ("broken:number", "names a int, not a factory"),
        ("broken:other_arguments", r"is not callable as factory\(settings, num_items, window\)"),
        ("broken:nothing", "makes a NoneType, and no SequenceStudent"),
        ("broken:other_items", "makes a student with items = 13 where 12 was asked for"),
        ("broken:Student", "cannot score a history|NotImplementedError"),
        ("broken:Wide", "makes a student that cannot score a history"),
        ("broken:Infinite", "scores that are not finite"),
    ],
)
def test_one_that_breaks_the_contract_is_refused_before_training(place: Path, factory: str, said: str) -> None:
    (place / "broken.py").write_text(BROKEN, encoding="utf-8")
    settings = student_of(factory, width=4)
    with pytest.raises(ConfigError, match=said) as caught:
        build_student(settings, 12, 5)
    assert caught.value.problems[0].field == "student.architecture"


# ------------------------------------------------------------------------------------------ a student of this project


def test_a_file_and_its_option_are_a_new_student(place: Path) -> None:
    files = files_of("add_a_student.md")
    write(place, {name: files[name] for name in ("src/student/architectures/mean.py", "conf/student/mean.yaml")})
    settings = settings_in(place, "student=mean", "student.depth=2", *SMALL)
    stages = check_experiment(settings, teacher=False)
    run_student_baseline(stages, new_run(place / "run"))
    loaded, _ = load_student(place / "run" / "best_student", stages.data)
    assert type(loaded).__name__ == "Mean"
    assert "mean" in architectures()
    with pytest.raises(ConfigError, match="student.heads"):
        settings_in(place, "student=mean", "student.heads=2")


# ------------------------------------------------------------------------------------------ a model in closed form


def test_a_file_and_its_option_are_a_new_model_in_closed_form(place: Path) -> None:
    write(place, files_of("add_a_closed_form_model.md"))
    alone = settings_in(place, "student=again", "student.decay=0.5")
    stages = check_experiment(alone, teacher=False)
    run_student_baseline(stages, new_run(place / "alone"))
    assert type(load_student(place / "alone" / "best_student", stages.data)[0]).__name__ == "Again"
    load_search_space(place / "search_spaces" / "again.yaml", nested_plain(alone), ("ndcg_20",))
    # in every table, as a network's prior, and as a teacher
    more = ["baselines.models=[again]", "baselines.trials=2", "student.prior=again", "distill.teachers=[again]"]
    network = settings_in(place, *SMALL, *more)
    again = Stages(network, StageCache(network.runtime.cache, True))
    run_student_baseline(again, new_run(place / "network"))
    assert (place / "network" / "metrics" / "again.json").is_file()
    kept = read_json_document(place / "network" / "best_student" / "prior" / "manifest.json")
    assert kept["settings"]["architecture"] == "again"
    outputs = again.outputs
    assert len(outputs.example_id) == len(again.data.train)
    assert outputs.check(again.data.num_items) == []


def test_a_model_in_closed_form_passes_the_contract(place: Path) -> None:
    write(place, files_of("add_a_closed_form_model.md"))
    contract_holds(place / "tests" / "student" / "test_again.py")


# ------------------------------------------------------------------------------------------------------------- a term

# the settings' class is made of all terms when it is first imported, so the term must be there before
PROGRAM = """
import sys
from pathlib import Path
import numpy as np, torch
import src.distill.terms as package
place = Path(sys.argv[1])
package.__path__.append(str(place / "src" / "distill" / "terms"))
import src.config.base_configs as base_configs
import src.config.composition as composition
from src.config.descriptions import describe_command
from src.pipeline.settings import ExperimentSettings
composition.CONF = place / "conf"
described = describe_command(ExperimentSettings)
base_configs.description = lambda _: described
from dataclasses import replace
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, terms
from src.distill.trainer_distill import train_distilled
from src.config.reading import read_settings
from src.student.datamodule import StudentData
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import train_student
from src.core.training import LoopSettings
from src.core.settings import nested_plain
from src.tuning.trial_values import no_distillation
from src.tuning.arms import arms_of, check_arms, fixed_values, space_of
from src.tuning.read_keys import unread
from src.tuning.space_document import load_search_space
from tests.fixtures import cycle_data, outputs_for, student_of

assert [term.name for term in terms()][-1] == "margin"
alone = student_of()
off = [f"distill.{key}={term.off(alone)[key]}" for term in terms() for key in term.switches]
settings = read_settings("config", [*off, "distill.margin=0.5"], ExperimentSettings)[0]
assert (settings.distill.margin_weight, settings.distill.margin) == (0.0, 0.5)
assert no_distillation(settings)["distill.margin_weight"] == 0.0

space = load_search_space(place / "search_spaces" / "margin.yaml", nested_plain(settings), ("ndcg_20",))
check_arms(space, settings)
arms = {arm.name: arm for arm in arms_of(space, settings)}
assert set(arms) == {"student", "margin", "labels_of_self", "labels_of_linear"}, set(arms)
assert set(space_of(arms["margin"], space).parameters) == set(space.parameters)
assert set(space_of(arms["student"], space).parameters) == {"student.dropout"}
assert fixed_values(arms["student"], settings)["distill.margin_weight"] == 0.0
where, _ = unread("distill", "distill.margin", lambda key: [0.0])
assert where == "is read only where distill.margin_weight is above 0"

source = cycle_data()
data = StudentData.of(source, "cpu")
teaching = align(outputs_for(source.train, np.arange(0, 40, 2)), source.train, 4, "cpu")
student = student_of(width=8, dropout=0.3, loop=LoopSettings(epochs=2, batch_size=16, monitor="ndcg_5"))
judged, active = EvaluationSettings(ks=(5,)), ActiveSettings()
alone = train_student(student, judged, data, 1).student.state_dict()
for weight in (0.0, 0.7):
    chosen = replace(settings.distill, margin_weight=weight, candidate_topk=4)
    taught = train_distilled(student, chosen, active, judged, data, teaching, 1)
    same = all(torch.equal(alone[name], value) for name, value in taught.student.state_dict().items())
    assert same == (weight == 0.0), weight
    assert taught.fit.history[0]["taught_share"] == (0.5 if weight else 0.0)
print("done")
"""


def test_a_file_is_a_new_term_with_its_arm_its_keys_and_its_neutral_value(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    write(tmp_path, files_of("add_a_loss_term.md"))
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    found = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert found.stdout.endswith("done\n"), found.stderr[-3000:]


# ------------------------------------------------------------------------------------------- a teacher's objective

TEACHER = [
    "teacher.prompt.max_tokens=200", "teacher.prompt.history_titles=3", "teacher.encoder.width=8",
    "teacher.encoder.loop.epochs=1", "teacher.lora.rank=4", "teacher.train_rows=24", "teacher.train.loop.batch_size=8",
    "teacher.validation_rows=12", "teacher.test_rows=12", "teacher.export.budget=9", "teacher.memory_probe=0",
    "teacher.tiny.width=16", "teacher.tiny.heads=2", "teacher.tiny.layers=1", "teacher.tiny.rows=40",
    "teacher.tiny.loop.epochs=1", "teacher.train.loop.epochs=1",
]  # fmt: skip


def test_an_objective_of_ones_own_from_the_command_line_to_labels(place: Path) -> None:
    write(place, files_of("add_a_teacher_objective.md"))
    own = "teacher.objective=my_objective:factory"
    settings = settings_in(place, *SMALL, *TEACHER, own, "teacher.head.fit_rows=30")
    stages = check_experiment(settings, teacher=True)
    outputs = stages.outputs
    assert len(outputs.example_id) == 9
    assert outputs.check(stages.data.num_items) == []
    kept = read_json_document(stages.teacher.folder / "manifest.json")
    assert kept["settings"]["objective"] == "my_objective:factory"
    other = settings_in(place, *SMALL, *TEACHER, "teacher.head.fit_rows=30")
    assert Stages(other, StageCache(other.runtime.cache, True)).teacher.key != stages.teacher.key
    with pytest.raises(ConfigError, match="cannot be found"):
        settings_in(place, "teacher.objective=my_objective:absent")


def test_the_pages_loss_by_hand(place: Path) -> None:
    write(place, files_of("add_a_teacher_objective.md"))
    module = importlib.import_module("my_objective")
    # among items 2 and 0 the target, 0, has e^0 of e^0 + e^(log 3): one in four
    logits = torch.tensor([[0.0, 9.0, math.log(3)]])
    found = module.candidate_loss(logits, torch.tensor([[2, 0]]), torch.tensor([0]))
    assert found.item() == pytest.approx(math.log(4))


def test_an_objective_of_ones_own_passes_the_contract(place: Path) -> None:
    write(place, files_of("add_a_teacher_objective.md"))
    contract_holds(place / "tests" / "test_my_objective.py")


# ---------------------------------------------------------------------------------------------------- a ranking way


def test_a_ranking_way_of_ones_own_divides_by_tokens(place: Path) -> None:
    write(place, files_of("add_a_ranking_way.md"))
    export = ExportSettings(ranking="my_ranking:PerToken", beams=12, top_n=12, batch_size=4)
    settings = replace(TITLE_SETTINGS, export=export)
    titles = tuple(f"Title {item}" + " Title" * (item % 3) for item in range(12))
    id_map = IdMap(tuple(map(str, range(12))), titles)
    teacher = title_teacher_of(save_random_causal(place / "model"), settings, id_map=id_map)
    rows = TensorExamples.of(cycle_data().train.take(np.arange(3)), CPU)
    with torch.no_grad():
        own, whole = (
            ranking_way(name).scorer(teacher, export, 12)(rows.history, rows.length).logits
            for name in ("my_ranking:PerToken", "constrained")
        )
    tokens = torch.tensor([len(ids) + 1 for ids in teacher.title_token_ids()])
    assert len(tokens.unique()) > 1
    torch.testing.assert_close(own * tokens, whole)
    # what decides a label is in the key of the labels
    assert asked_of_a_row(settings) == {"top_n": 12, "ranking": "my_ranking:PerToken", "beams": 12}


def test_a_ranking_way_of_ones_own_passes_the_contract(place: Path) -> None:
    write(place, files_of("add_a_ranking_way.md"))
    contract_holds(place / "tests" / "test_my_ranking.py")


# ---------------------------------------------------------------------------------- a selection policy, a row selector


def test_a_policy_of_ones_own_teaches_fewer_rows(place: Path) -> None:
    write(place, files_of("add_a_selection_policy.md"))
    stages = Stages(settings_in(place, *SMALL), StageCache(place / "cache", True))
    outputs = write_given_outputs(place / "outputs", stages.data)
    given = f"distill.outputs_from={outputs}"
    own = ["active.policy=my_policies:unsure", "active.kl_threshold=0.07"]
    taught = [
        run_distill(check_experiment(settings_in(place, *SMALL, given, *more), teacher=True), new_run(place / name))
        or read_json_document(place / name / "best_student" / "manifest.json")["fit"]["history"][-1]["taught_share"]
        for name, more in (("all", ["active.policy=all"]), ("own", own))
    ]
    assert taught[0] == 1.0
    assert 0 < taught[1] < 1
    contract_holds(place / "tests" / "test_my_policy.py")


def test_a_selector_of_ones_own_labels_the_shortest_histories(place: Path) -> None:
    write(place, files_of("add_a_row_selector.md"))
    train = cycle_data().train
    settings = ExportSettings(budget=8, select="my_selectors:shortest")
    rows = choose_rows(train, settings, seed=1)
    assert sorted(train.length[rows]) == sorted(train.length)[:8]
    assert set(rows) < set(choose_rows(train, replace(settings, budget=15), seed=1))


# ---------------------------------------------------------------------------------- a sampler, a pruner, a list metric


def test_a_sampler_and_a_pruner_of_ones_own_run_a_search_that_can_be_killed(place: Path) -> None:
    write(place, files_of("add_a_sampler_or_pruner.md"))
    tuning = TuningSettings(
        sampler="my_search:one_by_one", pruner="my_search:better_quarter", startup_trials=2,
        pruner_startup_trials=2, pruner_warmup_epochs=0,
    )  # fmt: skip
    space = SearchSpace("student", {"ndcg_20": "maximize"}, {"rate": FloatParameter(type="float", low=0.0, high=1.0)})
    assert sampling_problems(tuning, space, "space.yaml") == []
    assert not make_sampler(tuning, 1, 0)._multivariate

    def searched(folder: Path, stop_at: int) -> list[tuple[float, str]]:
        folder.mkdir()
        for last in (stop_at, 8):  # begun, and gone on with by another process
            record = Record.open(open_journal(folder), "search", space, tuning, 1, 5, "identity")
            while len(record.trials()) < last:
                trial = record.ask()
                if record.write_value(trial.number, 1, trial.params["rate"]):
                    record.prune(trial.number)
                else:
                    record.complete(trial.number, [trial.params["rate"]], {})
        return [(trial.params["rate"], trial.state.name) for trial in record.trials()]

    found = searched(place / "whole", 8)
    assert found == searched(place / "halves", 4)
    assert {state for _, state in found} == {"COMPLETE", "PRUNED"}


def test_a_function_is_a_new_metric_of_every_table(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "_METRICS", dict(coverage._METRICS))
    exec(files_of("add_a_list_metric.md")["src/evaluation/coverage.py"], vars(coverage))
    found = summarise_lists([[1], [1]], [3, 4])
    assert found["concentration_1"] == 1 / 2  # as the page computes
    stages = check_experiment(settings_in(place, *SMALL), teacher=False)
    run_student_baseline(stages, new_run(place / "run"))
    tables = [*(place / "run").rglob("*.json"), *(place / "run").rglob("*.csv")]
    assert [file for file in tables if "concentration_20" in file.read_text(encoding="utf-8")]


def test_the_first_page_leads_to_every_page() -> None:
    text = (PAGES / "index.md").read_text(encoding="utf-8")
    for page in PAGES.glob("add_a_*.md"):
        assert f"({page.name})" in text, page.name
        assert f"extend/{page.name}" in (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")
    named = re.findall(r"`((?:src|tests|conf)/[^`]*)`", text)
    assert named
    assert [name for name in named if not (REPOSITORY / name).exists()] == []


def test_every_page_shows_whole_files() -> None:
    pages = {page.name for page in PAGES.glob("add_a_*.md")}
    for page in sorted(pages - {"add_a_dataset_adapter.md"}):  # whose block tests/data/test_extend_page.py runs
        for name, content in files_of(page).items():
            if name.endswith(".py"):
                compile(content, name, "exec")
