"""A completed trial whose model is gone is the same model again, trained from its parameters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from src.core.errors import TrainingFailed
from src.core.training import NO_CHECKPOINT, silent
from src.tuning import fair
from src.tuning.dispatch import MODEL, Search
from src.tuning.fair import ARM
from src.tuning.finalists import STUDENT_SEED
from src.tuning.journal import open_journal
from src.tuning.kept_models import keep_model, train_again, whole_model
from src.tuning.publish import _named
from src.tuning.search_space import FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.shared_data import SharedData
from src.tuning.stage_functions import train_stage
from src.tuning.store import Store
from src.tuning.study import Record
from src.tuning.trial_values import apply_values
from tests.pipeline.toy import toy_stages
from tests.tuning.test_dispatch import lose

SPACE = SearchSpace(
    "student", {"ndcg_20": "maximize"}, {"student.dropout": FloatParameter(type="float", low=0.0, high=0.5)}
)


def test_a_model_is_trained_again_to_the_last_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, store = toy_stages(tmp_path, "student=sasrec"), Store(str(tmp_path / "trials"))
    (tmp_path / "trials").mkdir()
    shared = SharedData.of(stages.data, {}, stages.prior)
    shared.save(store)
    record = Record.open(open_journal(tmp_path), "search", SPACE, TuningSettings(), 3, 2, "identity", [], 0)
    search = Search(record, 1, 1, lambda trial: {**trial.params, STUDENT_SEED: 44}, "finals/")
    record.ask()
    values = search.values(record.trials()[0])
    settings = apply_values(stages.settings, values)
    trained = train_stage("student", settings, shared, stages.device, silent, NO_CHECKPOINT)
    attributes = {"weights": trained.weights, "metrics": dict(trained.fit.best_metrics)}
    record.complete(0, [trained.fit.best_metrics["ndcg_20"]], attributes)
    name, place = f"finals/0/{MODEL}", tmp_path / "elsewhere"
    keep_model(trained, values, attributes, tmp_path / "new", store, name)
    model = whole_model(store, name, place)
    assert model is not None
    weights = (model / "model.safetensors").read_bytes()

    lose(model, "a flipped byte")
    assert whole_model(store, name, place) is None
    caplog.clear()
    train_again(search, 0, stages.settings, store)
    # what a training says at each epoch is heard where another test has turned debugging on
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == ["the model of finals/0 is gone: it is trained again from its parameters"]
    assert whole_model(store, name, place) == model
    assert (model / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in (tmp_path / "trials").iterdir()) == ["data", "finals"]

    # another model is not put under the figures of the first one
    lose(model, "a flipped byte")
    monkeypatch.setattr(search, "values", lambda trial: {**trial.params, STUDENT_SEED: 45})
    with pytest.raises(TrainingFailed, match="the model of finals/0 is gone, and came out otherwise"):
        train_again(search, 0, stages.settings, store)
    assert whole_model(store, name, place) is None


def test_a_fair_comparison_gets_every_final_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, Path] = {}
    for number in (1, 3):
        kept[number] = tmp_path / f"{number}"
        kept[number].mkdir()
    finals = [SimpleNamespace(number=number, params={ARM: "student", "seed": 40 + number}) for number in (1, 2, 3)]
    found = SimpleNamespace(finals="finals", settings="settings", finals_of=lambda arm: finals)
    store = SimpleNamespace(local=tmp_path)
    session = SimpleNamespace(store=store, fetch=lambda search, number: kept.get(number))
    trained = list[Sequence[Any]]()

    def again(search: Any, number: int, *more: Any) -> None:
        trained.append((search, number, *more))
        kept[number] = tmp_path / f"{number}"

    monkeypatch.setattr(fair, "train_again", again)
    typed: Any = (session, found, SimpleNamespace(name="student"), tmp_path)
    assert fair._models(*typed) == [tmp_path / "1", tmp_path / "2", tmp_path / "3"]
    assert trained == [("finals", 2, "settings", store)]


def test_the_table_says_in_whose_place_a_trial_is_published() -> None:
    best = SimpleNamespace(number=2)
    typed: Any = (SimpleNamespace(best=best, gone=[1, 4]), SimpleNamespace(best=best, gone=[]))
    assert _named("best student", typed[0]) == "best student (trial 2: the model of trial 1 is gone)"
    assert _named("best student", typed[1]) == "best student"
