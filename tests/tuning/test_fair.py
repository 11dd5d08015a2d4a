"""How the fair protocol chooses an arm's configuration: among its best few, over other seeds; killed and resumed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from optuna.artifacts import get_all_artifact_meta

from src.core.errors import ConfigError
from src.pipeline.run_folder import single_driver
from src.pipeline.settings import ExperimentSettings
from src.tuning import journal
from src.tuning.dispatch import Dispatcher, Job, Search
from src.tuning.fair import ARM, SEED, FairSearch, _open, best_final, fair_phases
from src.tuning.fair_answer import _tell_dashboard
from src.tuning.finalists import STUDENT_SEED, TRIAL
from src.tuning.population_groups import PopulationGroups
from src.tuning.search_settings import SearchSettings
from src.tuning.search_space import FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.store import Store
from tests.pipeline.toy import new_run, toy_settings
from tests.tuning.killing import EVERY, DyingBackend, Killed, table

SPACE = SearchSpace(
    "distill",
    {"ndcg_20": "maximize"},
    {
        "student.dropout": FloatParameter(type="float", low=0.0, high=0.5),
        "distill.ed_weight": FloatParameter(type="float", low=0.0, high=1.0),
    },
)
ARMS = ["student", "embedding"]
TRIALS = 3
#: the run's seed is 42
FINAL_SEEDS, FINALIST_SEEDS = [43, 44], [45, 46]


@pytest.fixture(autouse=True)
def dying(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `tests/tuning/test_kills.py`."""
    monkeypatch.setattr(journal, "JournalFileBackend", DyingBackend)
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    DyingBackend.at = DyingBackend.written = 0


@cache
def settings() -> ExperimentSettings:
    """With one term that is searched: two arms."""
    base = ["distill.lam=0", "distill.alpha=0", "distill.teachers=[titles]", "student.prior=none"]
    return toy_settings(Path("nowhere"), *base)


def value(values: Mapping[str, Any]) -> float:
    """The seed of the search makes large dropout look good; on every other seed small dropout is better."""
    dropout, seed = float(values["student.dropout"]), int(values.get(STUDENT_SEED, 42))
    return 0.3 + (0.1 if seed == 42 else -0.2) * dropout + 0.01 * float(values.get("distill.ed_weight", 0)) + seed / 1e5


class Toy:
    """A fair comparison without Ray or training."""

    def __init__(self, folder: Path, finalists: int = 3, population_size: int = 1) -> None:
        self.folder, self.population_size = folder, population_size
        self.crews: list[list[Job]] = []
        self.tuning = TuningSettings(
            finalists=finalists, finalist_seeds=2, seeds=2, startup_trials=1, pruner="none", sampler="random"
        )
        self.trained: list[tuple[str, int]] = []

    def run(self, trials: int = TRIALS) -> FairSearch:
        """Start, or go on."""
        self.folder.mkdir(exist_ok=True)
        with single_driver(self.folder):
            experiment = {one.name: getattr(settings(), one.name) for one in fields(settings())}
            asked = SearchSettings(**experiment, trials=trials, tuning=self.tuning)
            storage = journal.open_journal(self.folder)
            fair = _open(asked, settings(), SPACE, {}, storage)
            self._work_through(fair_phases(fair, self.tuning, {}, storage))
        return fair

    def _work_through(self, phases: Iterator[Sequence[Search]]) -> None:
        groups = PopulationGroups(settings(), "distill", 24)
        store = Store(str(self.folder / "trials"))
        dispatcher = Dispatcher(
            next(phases), store, retries=1, population_size=self.population_size, group=groups, phases=phases
        )
        while jobs := dispatcher.together():
            self.crews.append(jobs)
            for job in jobs:
                self._train(dispatcher, job)

    def _train(self, dispatcher: Dispatcher, job: Job) -> None:
        found = value(job.values)
        self.trained.append((job.folder, int(job.values.get(STUDENT_SEED, 42))))
        done = {"kind": "done", "values": [found], "attributes": {"epochs": 1, "weights": f"{found}"}}
        if not dispatcher.on_report(job.start, {"kind": "epoch", "epoch": 1, "objective": found}):
            dispatcher.on_report(job.start, done)
        dispatcher.on_end(job.start)


def everything(fair: FairSearch) -> dict[str, Any]:
    """What a comparison came to: every trial of every study, and what was chosen."""
    return {
        "arms": {name: table(search.record) for name, search in fair.arms.items()},
        "finals": table(fair.finals.record),
        "finalists": fair.finalists,
        "chosen": {arm: fair.chosen(arm).params for arm in fair.arms},
    }


def test_the_best_mean_over_other_seeds_decides_and_not_the_luckiest_trial(tmp_path: Path) -> None:
    fair = Toy(tmp_path / "a").run()
    assert list(fair.arms) == ARMS
    for arm, search in fair.arms.items():
        best, chosen = search.record.best(), fair.chosen(arm)
        assert best is not None
        assert chosen.params["student.dropout"] < best.params["student.dropout"]
        first, *others = fair.finalists[arm]
        assert (first.number, len(others)) == (chosen.number, 2)
        expected = [value({**fair.values_of(arm), STUDENT_SEED: seed}) for seed in FINALIST_SEEDS]
        assert first.values == pytest.approx(expected)
        assert first.mean == pytest.approx(float(np.mean(expected)))
        finals = fair.finals_of(arm)
        assert [trial.params[SEED] for trial in finals] == FINAL_SEEDS
        assert [t.values[0] for t in finals] == pytest.approx(
            [value({**fair.values_of(arm), STUDENT_SEED: s}) for s in FINAL_SEEDS]
        )
        settings = fair.final_settings(finals[0])
        # what the student is made from (prior, teacher, labels) was made with the run's own seed
        assert (settings.seed, settings.student_seed) == (42, FINAL_SEEDS[0])
        assert settings.student.dropout == chosen.params["student.dropout"]  # type: ignore[attr-defined]


def test_every_arm_has_as_many_trainings(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "a")
    toy.run()
    seeds = [seed for folder, seed in toy.trained]
    assert {seed: seeds.count(seed) for seed in set(seeds)} == {
        42: TRIALS * len(ARMS), **dict.fromkeys(FINALIST_SEEDS, 3 * len(ARMS)), **dict.fromkeys(FINAL_SEEDS, len(ARMS))
    }  # fmt: skip
    for arm in ARMS:
        assert sum(folder.startswith(f"finalists/{arm}_{TRIALS}_") for folder, _ in toy.trained) == 6


def test_seeds_of_one_configuration_train_as_one_population(tmp_path: Path) -> None:
    toy = Toy(tmp_path / "a", population_size=8)
    fair = toy.run()
    finals = [[job.number for job in crew] for crew in toy.crews if crew[0].folder.startswith("finals/")]
    # trial 0 is always alone; the arms are two forms: the student with seed 44, then the other arm with both seeds
    assert finals == [[0], [1], [2, 3]]
    others = [crew for crew in toy.crews if crew[0].folder.startswith(f"finalists/embedding_{TRIALS}_")]
    assert [len(crew) for crew in others] == [1, 5]
    assert {job.values[STUDENT_SEED] for job in others[1]} == set(FINALIST_SEEDS)
    assert everything(fair) == everything(Toy(tmp_path / "alone").run())


def test_without_finalists_the_best_value_decides(tmp_path: Path) -> None:
    fair = Toy(tmp_path / "a", finalists=1).run()
    assert fair.finalists == {}
    for arm, search in fair.arms.items():
        best = search.record.best()
        assert best is not None
        assert fair.chosen(arm).number == best.number


@pytest.mark.slow
@pytest.mark.parametrize("population_size", [1, 8])
@pytest.mark.parametrize("every", EVERY)
def test_a_comparison_killed_at_any_record_comes_to_the_same(tmp_path: Path, population_size: int, every: int) -> None:
    whole = Toy(tmp_path / "whole", population_size=population_size)
    expected = everything(whole.run())
    records = DyingBackend.written
    assert records > 50
    for at in range(1, records + 1, every):
        toy = Toy(tmp_path / f"{at}", population_size=population_size)
        DyingBackend.at, DyingBackend.partial, DyingBackend.written = at, at % 2 == 0, 0
        with pytest.raises(Killed):
            toy.run()
        DyingBackend.at = 0
        assert everything(toy.run()) == expected, f"killed at record {at} of {records}"
        assert set(toy.trained) == set(whole.trained)


def test_a_finished_comparison_is_told_in_the_dashboard(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "a")
    fair = Toy(folder.path).run()
    (folder.path / "comparison.csv").write_text("model,split,examples,ndcg_20\nstudent (seed 43),test,9,0.25\n")
    line = {"name": "embedding", "sentence": "the embedding helped"}
    answer = {"comparisons": [line], "comparisons_with_best": [line, {"name": "linear", "sentence": "linear is worse"}]}
    for _ in range(2):  # as a search that is started again ends again
        _tell_dashboard(fair, answer, folder)
    best = best_final(fair)
    (attached,) = get_all_artifact_meta(fair.finals.record.study)
    assert attached.filename == "student_card.md"
    (card,) = (folder.path / "dashboard_files").iterdir()
    assert card.name == attached.artifact_id
    lines = card.read_text().splitlines()
    assert lines[0] == f"# The student of arm embedding, trained with seed {best.params[SEED]}"
    assert "the embedding helped" in lines
    assert f"- `student_seed`: {best.params[SEED]}" in lines
    assert f"- `student.dropout`: {fair.chosen('embedding').params['student.dropout']}" in lines
    assert "| student (seed 43) | test | 9 | 0.2500 |" in lines
    notes = {name: note_of(search) for name, search in {**fair.arms, "finals": fair.finals}.items()}
    assert notes["finals"].startswith("the embedding helped\n\nlinear is worse\n\nMeans over seeds")
    assert "The student's card is among the artifacts" in notes["finals"]
    assert "the embedding helped" in notes["embedding"]
    assert "helped" not in notes["student"]
    assert all("the study `finals`" in notes[arm] for arm in ARMS)


def note_of(search: Search) -> str:
    """The study's note, put together as the dashboard does."""
    study = search.record.study
    known = study._storage.get_study_system_attrs(study._study_id)
    pieces = [key for key in known if key.startswith("dashboard:note_str:")]
    return "".join(known[key] for key in sorted(pieces, key=lambda key: int(key.rpartition(":")[2])))


def test_trials_cannot_be_added_once_the_finals_have_begun(tmp_path: Path) -> None:
    Toy(tmp_path / "a").run()
    with pytest.raises(ConfigError, match="cannot be raised any more"):
        Toy(tmp_path / "a").run(trials=TRIALS + 1)


def test_a_finalist_is_named_by_its_trial(tmp_path: Path) -> None:
    fair = Toy(tmp_path / "a").run()
    storage = journal.open_journal(tmp_path / "a")
    studies = {study.study_name: study for study in storage.get_all_studies()}
    assert list(studies) == [*ARMS, "finals", *(f"finalists of {TRIALS} trials: {arm}" for arm in ARMS)]
    found = storage.get_all_trials(studies[f"finalists of {TRIALS} trials: student"]._study_id)
    assert {trial.params[TRIAL] for trial in found} == {one.number for one in fair.finalists["student"]}
    assert {trial.params[ARM] for trial in fair.finals.record.trials()} == set(ARMS)
