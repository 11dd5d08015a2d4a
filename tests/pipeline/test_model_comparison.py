"""What stands beside what: models that cannot be computed keep their row, and examples their lists."""

from __future__ import annotations

import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from src.core.documents import read_json_document
from src.data.examples import sample
from src.evaluation.example_histories import COUNT, LISTED, read_examples
from src.pipeline import model_comparison
from src.pipeline.evaluate_all import check_results, run_eval_all
from src.pipeline.example_lists import strongest_closed_form, write_examples
from src.pipeline.model_comparison import EvaluatedModel, MissingModel, ModelComparison, closed_form_models
from src.pipeline.runs import run_student_baseline
from src.pipeline.stages import Stages
from src.student.settings import ClosedFormSettings
from tests.pipeline.test_runs import evaluation_of, record_settings
from tests.pipeline.toy import new_run, toy_stages

TWO = "baselines.models=[popularity,transitions]"


@pytest.fixture
def without_transitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """A world whose catalogue is too large for one of the models in closed form."""
    monkeypatch.setattr(ClosedFormSettings, "too_large", lambda self, items: self.architecture == "transitions")


@pytest.mark.usefixtures("without_transitions")
def test_a_closed_form_that_does_not_fit_is_listed_with_its_reason(tmp_path: Path) -> None:
    models = closed_form_models(toy_stages(tmp_path, TWO))
    assert [type(model) for model in models] == [EvaluatedModel, MissingModel]
    missing = models[1]
    assert isinstance(missing, MissingModel)
    assert missing.name == "transitions"
    # what decides, in numbers, and the setting that draws the line
    assert "this catalogue has 24 items" in missing.reason
    assert "student.max_items = 20000" in missing.reason


@pytest.mark.usefixtures("without_transitions")
def test_every_command_gives_a_missing_model_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed: list[object] = []
    monkeypatch.setattr(model_comparison, "console", SimpleNamespace(print=printed.append))
    stages, folder = toy_stages(tmp_path, TWO), new_run(tmp_path / "result" / "baseline")
    record_settings(stages, folder)
    run_student_baseline(stages, folder)
    both = new_run(tmp_path / "evaluation")
    run_eval_all(*(lambda asked: (asked, check_results(asked)))(evaluation_of(tmp_path, folder.path)), both)
    for place, splits in ((folder.path, ["validation"]), (both.path, ["validation", "test"])):
        table = pd.read_csv(place / "comparison.csv")
        own = table[table.model == "transitions"]
        assert own.split.tolist() == splits
        assert own.ndcg_20.isna().all()
        assert own.missing.str.contains("this catalogue has 24 items").all()
        assert table[table.model != "transitions"].missing.isna().all()
        assert not (place / "metrics" / "transitions.json").exists()
        assert (place / "metrics" / "popularity.json").exists()
    captions = [str(table.caption) for table in printed]  # type: ignore[attr-defined]
    assert all("transitions is missing: this catalogue has 24 items" in caption for caption in captions)
    assert len(captions) == 2


# --------------------------------------------------------------------------------------------------------- examples


def compared(stages: Stages, repeated: float) -> ModelComparison:
    """Popularity and transitions, as if so many targets had been met before."""
    comparison = ModelComparison(stages, closed_form_models(stages), with_teacher=False)
    comparison.__dict__["repeated"] = repeated
    return comparison


def always(*items: int) -> EvaluatedModel:
    """A model that recommends these items, in this order, to everybody."""

    def score(history: Tensor, length: Tensor) -> Tensor:
        scores = torch.zeros(len(history), 24)
        scores[:, list(items)] = torch.arange(len(items), 0, -1.0)
        return scores

    return EvaluatedModel("always", lambda: score)


def test_of_many_models_one_at_a_time_is_in_memory(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, TWO)
    record = stages.closed_form("transitions")
    alive: list[weakref.ref[torch.nn.Module]] = []

    def read() -> torch.nn.Module:
        assert [one() for one in alive] == [None] * len(alive)
        student = stages.load_student(record)
        alive.append(weakref.ref(student))
        return student

    held = stages.load_student(record)
    models = [*(EvaluatedModel(f"seed {seed}", read) for seed in range(3)), EvaluatedModel("held", lambda: held)]
    comparison = ModelComparison(stages, models, with_teacher=False)
    ranked = [*comparison.validation(), *comparison.rank("validation again", stages.data.validation, 0)]
    assert len(alive) == 6
    assert all(torch.equal(one.ranks, ranked[3].ranks) for one in ranked)


def ranking_of(top: np.ndarray) -> SimpleNamespace:
    return SimpleNamespace(top=torch.from_numpy(top))


def test_examples_hold_every_models_list_of_the_teachers_sample(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, TWO, "teacher.validation_rows=15")
    comparison, folder = compared(stages, repeated=1.0), new_run(tmp_path / "run")
    asked = sample(stages.data.validation, 15, stages.settings.seed, "validation")
    top = np.tile(np.arange(20), (15, 1))
    top[:, 0] = -1  # an answer that was no item
    ranked = comparison.validation()
    shown = {"baseline": always(3, 1, 2, 5, 4), "winner": always(7, 8, 9, 10, 11)}
    shown |= strongest_closed_form(comparison, ranked)  # type: ignore[arg-type]
    write_examples(folder, comparison, shown, ranking_of(top))  # type: ignore[arg-type]
    found = read_examples(folder.path / "metrics" / "examples.json")
    k = max(stages.settings.evaluation.ks)
    values = {row.model: row.metrics[f"ndcg_{k}"] for row in comparison.rows(ranked)}
    strongest = max(values, key=values.__getitem__)
    assert list(found.models.items()) == [
        ("baseline", "always"), ("winner", "always"), ("teacher", "teacher"), ("closed form", strongest)
    ]  # fmt: skip
    assert (found.pool, found.listed, found.no_teacher) == (15, LISTED, "")
    assert len(found.examples) == COUNT
    assert {example.example_id for example in found.examples} <= set(asked.example_id.tolist())
    ids = stages.data.id_map.raw_ids
    place = {example_id: row for row, example_id in enumerate(asked.example_id.tolist())}
    for example in found.examples:
        lists = {role: [item.raw_id for item in items] for role, items in example.lists.items()}
        assert lists["baseline"] == [ids[item] for item in (3, 1, 2, 5, 4)]
        assert lists["winner"] == [ids[item] for item in (7, 8, 9, 10, 11)]
        assert lists["teacher"] == [ids[item] for item in (1, 2, 3, 4, 5)]
        assert example.target.raw_id == ids[asked.target[place[example.example_id]]]
    hits = {role: np.isin(asked.target, items) for role, items in (("b", (3, 1, 2, 5, 4)), ("w", (7, 8, 9, 10, 11)))}
    assert (found.only_winner, found.only_baseline) == (hits["w"].sum(), hits["b"].sum())


def test_lists_leave_out_what_was_met_before_where_repeats_are_rare(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, TWO, "teacher.validation_rows=15")
    comparison, folder = compared(stages, repeated=0.0), new_run(tmp_path / "run")
    top = np.tile(np.arange(20), (15, 1))
    shown = {"baseline": always(*range(20)), "winner": always(*range(20, 24))}
    write_examples(folder, comparison, shown, ranking_of(top))  # type: ignore[arg-type]
    found = read_examples(folder.path / "metrics" / "examples.json")
    assert found.seen_left_out
    validation, ids = stages.data.validation, list(stages.data.id_map.raw_ids)
    rows = {example_id: row for row, example_id in enumerate(validation.example_id.tolist())}
    past = validation.past
    for example in found.examples:
        row = rows[example.example_id]
        met = set(past.items[past.end[row] - past.earlier[row] : past.end[row]].tolist()) - {validation.target[row]}
        new = [item for item in range(20) if item not in met][:LISTED]
        # the teacher's word is cut as the others' lists are
        for role in ("baseline", "teacher"):
            assert [ids.index(item.raw_id) for item in example.lists[role]][: len(new)] == new  # type: ignore[index]


def test_a_teacher_that_ranked_too_few_has_lists_of_those_alone(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, TWO, f"teacher.validation_rows={COUNT - 1}")
    comparison, folder = compared(stages, repeated=1.0), new_run(tmp_path / "run")
    asked = sample(stages.data.validation, COUNT - 1, stages.settings.seed, "validation")
    top = np.tile(np.arange(20), (COUNT - 1, 1))
    shown = {"baseline": always(0), "winner": always(1)}
    write_examples(folder, comparison, shown, ranking_of(top))  # type: ignore[arg-type]
    found = read_examples(folder.path / "metrics" / "examples.json")
    assert found.pool == len(stages.data.validation)
    for example in found.examples:
        assert ("teacher" in example.lists) == (example.example_id in asked.example_id)


def test_labels_of_training_examples_alone_are_no_lists_and_the_file_says_so(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, TWO)
    comparison, folder = compared(stages, repeated=1.0), new_run(tmp_path / "run")
    shown = {"baseline": always(0), "winner": always(1)}
    write_examples(folder, comparison, shown, None, taught=True)  # type: ignore[arg-type]
    first = read_json_document(folder.path / "metrics" / "examples.json")
    assert "labels of training examples" in first["no_teacher"]
    assert list(first["models"]) == ["baseline", "winner"]
    write_examples(folder, comparison, shown, None, taught=True)  # type: ignore[arg-type]
    assert read_json_document(folder.path / "metrics" / "examples.json") == first


def test_of_a_search_over_teachers_the_teacher_is_the_winner(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path, TWO, "teacher.validation_rows=15")
    comparison, folder = compared(stages, repeated=1.0), new_run(tmp_path / "run")
    top = np.tile(np.arange(20), (15, 1))
    write_examples(folder, comparison, {"baseline": always(0)}, ranking_of(top))  # type: ignore[arg-type]
    found = read_examples(folder.path / "metrics" / "examples.json")
    assert found.models == {"baseline": "always", "winner": "teacher"}
