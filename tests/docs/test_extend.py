"""The worked examples of `docs/extend/`: taken from the pages as they stand, put where they say, and run."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import src.config.base_configs as base_configs
import src.config.composition as composition
import src.student.architectures as architectures_package
from src.config.descriptions import describe_command
from src.config.overrides import format_value
from src.config.reading import read_settings
from src.core.errors import ConfigError
from src.core.paths import REPOSITORY, read_json
from src.pipeline.cache import StageCache
from src.pipeline.preflight import check_experiment
from src.pipeline.runs import run_distill, run_student_baseline
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.artefact import load_student
from src.student.base import ARCHITECTURES
from src.student.models import architectures, build_student
from src.tuning.applied import apply_values, plain
from src.tuning.space_document import load_search_space
from tests.fixtures import student_of
from tests.pipeline.toy import BASELINES, WORLD, new_run, write_given_outputs

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
    load_search_space(place / "space.yaml", plain(settings), ("ndcg_20",))
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
    load_search_space(place / "search_spaces" / "again.yaml", plain(alone), ("ndcg_20",))
    # in every table, as a network's prior, and as a teacher
    more = ["baselines.models=[again]", "baselines.trials=2", "student.prior=again", "distill.teachers=[again]"]
    network = settings_in(place, *SMALL, *more)
    again = Stages(network, StageCache(network.runtime.cache, True))
    run_student_baseline(again, new_run(place / "network"))
    assert (place / "network" / "metrics" / "again.json").is_file()
    kept = read_json(place / "network" / "best_student" / "prior" / "manifest.json")
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
composition.CONF = place / "conf"
from dataclasses import replace
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, terms
from src.distill.trainer_distill import train_distilled
from src.config.reading import read_settings
from src.pipeline.settings import ExperimentSettings
from src.student.datamodule import StudentData
from src.student.settings import EvaluationSettings
from src.student.trainer_baseline import train_student
from src.core.training import LoopSettings
from src.tuning.applied import no_distillation, plain
from src.tuning.arms import arms_of, check_arms, fixed_values, space_of
from src.tuning.read_keys import unread
from src.tuning.space_document import load_search_space
from tests.fixtures import cycle_data, outputs_for, student_of

assert [term.name for term in terms()][-1] == "margin"
off = [f"distill.{key}=0.0" for term in terms() for key in term.switches]
settings = read_settings("config", [*off, "distill.margin=0.5"], ExperimentSettings)[0]
assert (settings.distill.margin_weight, settings.distill.margin) == (0.0, 0.5)
assert no_distillation(settings)["distill.margin_weight"] == 0.0

space = load_search_space(place / "search_spaces" / "margin.yaml", plain(settings), ("ndcg_20",))
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


def test_every_page_shows_whole_files() -> None:
    pages = {page.name for page in PAGES.glob("add_a_*.md")}
    for page in sorted(pages - {"add_a_dataset_adapter.md"}):  # whose block tests/data/test_extend_page.py runs
        for name, content in files_of(page).items():
            if name.endswith(".py"):
                compile(content, name, "exec")
