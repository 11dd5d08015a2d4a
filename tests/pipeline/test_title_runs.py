"""A teacher that writes titles from end to end, small: what `run_teacher`, `run_distill` and `run_eval_all` leave."""

from __future__ import annotations

import json
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from src.core.paths import require_finished
from src.core.result_files import SETTINGS_FILE
from src.core.settings import nested_plain
from src.data.candidates import draw_candidate_lists, load_candidates
from src.data.teacher_outputs import load_teacher_outputs
from src.pipeline import evaluate_all
from src.pipeline.evaluate_all import EvaluateSettings, check_results, run_eval_all
from src.pipeline.model_comparison import ModelComparison, closed_form_models
from src.pipeline.runs import run_distill, run_teacher
from src.pipeline.settings import RuntimeSettings
from src.pipeline.stages import Stages
from src.student.settings import EvaluationSettings
from src.teacher.operations.inference import TrainedTeacher
from src.teacher.title_lm.inference import TrainedTitleTeacher
from tests.pipeline.toy import new_run, toy_stages

CANDIDATES, SAMPLE = 4, 12
TEACHER = [
    "teacher=title", f"teacher.title.candidates={CANDIDATES}", "teacher.prompt.max_tokens=200",
    "teacher.prompt.history_titles=3", "teacher.encoder.width=8", "teacher.encoder.loop.epochs=2",
    "teacher.lora.rank=8", "teacher.train_rows=24", "teacher.train.loop.epochs=1", "teacher.train.loop.batch_size=8",
    f"teacher.validation_rows={SAMPLE}", f"teacher.test_rows={SAMPLE}", "teacher.export.budget=9",
    "teacher.tiny.width=16", "teacher.tiny.heads=2", "teacher.tiny.layers=1", "teacher.tiny.rows=40",
    "teacher.tiny.loop.epochs=1",
]  # fmt: skip
ANSWERS = ["answer_hit_ratio_1", "valid_ratio"]


def stages_of(root: Path, *more: str) -> Stages:
    return toy_stages(root, *TEACHER, *more)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher and a distillation from it, over one cache, and both set side by side."""
    root = tmp_path_factory.mktemp("title_runs")
    folders = [new_run(root / "result" / name) for name in ("taught", "distilled")]
    for folder, work in zip(folders, (lambda s, f: run_teacher(s, f, export=False), run_distill), strict=True):
        stages = stages_of(root)
        folder.write_yaml(SETTINGS_FILE, nested_plain(stages.settings))
        work(stages, folder)
    runtime = RuntimeSettings(device="cpu", cache=root / "cache")
    results = tuple(folder.path for folder in folders)
    settings = EvaluateSettings(evaluation=EvaluationSettings(), runtime=runtime, results=results)
    run_eval_all(settings, check_results(settings), new_run(root / "evaluation"))
    return root


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def table(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "comparison.csv").set_index(["model", "split"])


def test_a_writing_teachers_folder_holds_exactly_these_files(runs: Path) -> None:
    folder = runs / "result" / "taught"
    candidates = {
        f"teacher/candidates/{split}/{name}"
        for split in ("train", "validation")
        for name in ("example_id.npy", "items.npy", "manifest.json")
    }
    arrays = ("candidates", "distances", "example_id", "item_embedding", "scores", "sequence_embedding")
    assert {name for name in files(folder) if not name.startswith("teacher/llm/")} == {
        "comparison.csv", "manifest.json", "ranks.csv", "segments.csv", "settings.yaml",
        *(f"metrics/{name}.json" for name in ("baseline", "popularity", "teacher", "teacher_check", "time")),
        "teacher/adapter/adapter_config.json", "teacher/adapter/adapter_model.safetensors", "teacher/README.md",
        *(f"teacher/encoder/{name}" for name in ("id_map.json", "manifest.json", "model.safetensors")),
        *(f"teacher/{name}" for name in ("gate.safetensors", "projector.safetensors", "id_map.json")),
        "teacher/manifest.json", "teacher/stage.json",
        *candidates,
        *(f"teacher_outputs/{name}.npy" for name in arrays),
        *(f"teacher_outputs/{name}.json" for name in ("id_map", "manifest", "stage")),
    }  # fmt: skip


def test_its_answers_stand_in_table_metrics_and_check(runs: Path) -> None:
    folder = runs / "result" / "taught"
    own = table(folder).loc[("teacher", "validation sample")]
    metrics = json.loads((folder / "metrics" / "teacher.json").read_text())["validation sample"]
    summary = require_finished(folder)["teacher"]
    check = json.loads((folder / "metrics" / "teacher_check.json").read_text())
    # the sample, the lists and the teacher are those of its best epoch
    learned = summary["validation"]
    assert own[ANSWERS].tolist() == [learned["hit_ratio_1"], learned["valid_ratio"]]
    assert [metrics[name] for name in ANSWERS] == own[ANSWERS].tolist()
    assert check["valid_ratio"] == learned["valid_ratio"]
    assert check["examples"] == own["examples"] == SAMPLE
    assert check["teacher_ndcg"] == pytest.approx(own["ndcg_20"])
    # nobody else writes
    assert table(folder).drop(("teacher", "validation sample"))[ANSWERS].isna().all(axis=None)
    assert (summary["rows_labelled"], summary["different_rows"]) == (9, 24)


def test_its_labels_are_rankings_with_distances(runs: Path) -> None:
    stages = stages_of(runs)
    outputs = load_teacher_outputs(
        runs / "result" / "taught" / "teacher_outputs", stages.data.fingerprints(), stages.data.num_items
    )
    assert outputs.manifest["ranking"] == "constrained"
    assert (np.diff(outputs.distances, axis=1) >= 0).all()
    assert (outputs.distances > 0).all()
    assert outputs.candidates.shape == (9, 20)
    assert outputs.sequence_embedding.shape == (9, 16)


def test_a_student_is_distilled_from_it_without_training_it_again(runs: Path) -> None:
    folder = runs / "result" / "distilled"
    reused = require_finished(folder)["reused_stages"]
    assert {"teacher", "teacher_outputs", "encoder", "tiny_llm"} <= set(reused)
    pd.testing.assert_series_equal(
        table(folder).loc[("teacher", "validation sample")],
        table(runs / "result" / "taught").loc[("teacher", "validation sample")],
    )


def test_eval_all_ranks_it_and_judges_its_answers(runs: Path) -> None:
    found = table(runs / "evaluation")
    before = table(runs / "result" / "taught").loc[("teacher", "validation sample")]
    after = found.loc[("taught/teacher", "validation (taught's sample)")]
    names = [name for name in before.index if "_" in name and pd.notna(before[name])]
    assert after[names].tolist() == before[names].tolist()
    assert found.loc[("taught/teacher", "test (taught's sample)")][ANSWERS].notna().all()
    assert np.isnan(found.loc[("distilled/student", "test"), "valid_ratio"])


def test_eval_all_loads_each_teacher_once_and_holds_one_at_a_time(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taught = runs / "result" / "taught"
    results = tuple(Path(shutil.copytree(taught, runs / "copies" / name)) for name in ("first", "second"))
    loaded, alive, real = list[str](), list[weakref.ref[Any]](), evaluate_all.load_trained

    def load(folder: Path, *arguments: Any) -> TrainedTeacher:
        assert [model() for model in alive] == [None] * len(alive)
        loaded.append(folder.parent.name)
        teacher = real(folder, *arguments)
        assert isinstance(teacher, TrainedTitleTeacher)
        alive.append(weakref.ref(teacher.model))
        return teacher

    monkeypatch.setattr(evaluate_all, "load_trained", load)
    runtime = RuntimeSettings(device="cpu", cache=runs / "cache")
    settings = EvaluateSettings(evaluation=EvaluationSettings(), runtime=runtime, results=results)
    folder = new_run(runs / "two_teachers")
    run_eval_all(settings, check_results(settings), folder)
    assert loaded == ["first", "second"]
    once, twice = table(runs / "evaluation"), table(folder.path)
    for split in ("validation", "test"):
        wanted = once.loc[("taught/teacher", f"{split} (taught's sample)")].dropna().tolist()
        for name in loaded:
            assert twice.loc[(f"{name}/teacher", f"{split} ({name}'s sample)")].dropna().tolist() == wanted
            assert (folder.path / "candidates" / name / split / "items.npy").is_file()
    # one split after the other, the models of each before its samples
    splits = [split.split(" ")[0] for split in pd.read_csv(folder.path / "comparison.csv")["split"]]
    assert splits == sorted(splits, reverse=True)


def test_the_lists_of_a_test_sample_are_kept(runs: Path) -> None:
    stages, folder = stages_of(runs), new_run(runs / "tested")
    comparison = ModelComparison(stages, closed_form_models(stages), with_teacher=True)
    ranked = comparison.test(folder, "a test", "nothing")
    (own,) = (one for one in ranked if one.model == "teacher")
    lists = load_candidates(folder.path / "candidates" / "test", stages.data.fingerprints())
    assert lists.items.shape == (SAMPLE, CANDIDATES)
    assert set(lists.example_id) == set(own.example_id)
    assert set(own.more) == set(ANSWERS)


def test_a_ranking_is_computed_once_and_outlives_the_teacher(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = stages_of(runs)
    first = stages.check_teacher()
    stages.release_teacher()
    monkeypatch.setattr(TrainedTitleTeacher, "ranking", None)
    assert stages.check_teacher() == first
    ranked = ModelComparison(stages, closed_form_models(stages), with_teacher=True).validation()
    assert any(one.model == "teacher" and set(one.more) == set(ANSWERS) for one in ranked)


def test_a_grounded_ranking_labels_from_the_same_teacher(runs: Path) -> None:
    stages = stages_of(runs, "teacher.export.ranking=grounded")
    outputs = stages.outputs
    assert outputs.manifest["ranking"] == "grounded"
    assert "Euclidean distance" in outputs.manifest["distances"]
    assert {record.name for record in stages.cache.records if not record.reused} == {"teacher_outputs"}
    constrained = stages_of(runs).outputs
    assert sorted(outputs.example_id) == sorted(constrained.example_id)
    assert not np.array_equal(outputs.candidates, constrained.candidates)
    assert (np.diff(outputs.distances, axis=1) >= 0).all()


def test_a_larger_budget_pays_for_the_difference(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, asked = stages_of(runs, "teacher.export.budget=14"), []
    labeller = stages.trained_teacher.labeller()
    real = type(labeller).label

    def counting(self, examples):  # type: ignore[no-untyped-def]
        asked.append(len(examples))
        return real(self, examples)

    monkeypatch.setattr(type(labeller), "label", counting)
    assert len(stages.outputs) == 14
    assert asked == [5]


def test_the_lists_are_those_of_the_seed(runs: Path) -> None:
    stages = stages_of(runs)
    saved = load_candidates(runs / "result" / "taught" / "teacher" / "candidates" / "validation", {})
    drawn = draw_candidate_lists(stages.data.validation, stages.data.num_items, CANDIDATES, stages.settings.seed)
    shown = stages.data.validation.take(np.isin(stages.data.validation.example_id, saved.example_id))
    np.testing.assert_array_equal(saved.of(shown), drawn.of(shown))
