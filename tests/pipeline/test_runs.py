"""What the `run_*` commands leave, who may look at the test split, and how results are set side by side."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from src.core.documents import read_json_document
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST
from src.core.result_files import SETTINGS_FILE
from src.core.settings import nested_plain
from src.data.describe import describe, format_description
from src.data.examples import SealedExamples, sample
from src.evaluation.comparison import ModelRanks, as_frame, comparison_row, ranks_frame
from src.pipeline import runs as run_module
from src.pipeline.cache import StageCache
from src.pipeline.evaluate_all import EvaluateSettings, FinishedResult, check_results, run_eval_all
from src.pipeline.model_comparison import ModelComparison, closed_form_models
from src.pipeline.run_folder import TIMES, RunFolder
from src.pipeline.runs import describe_data, run_distill, run_student_baseline
from src.pipeline.settings import RuntimeSettings
from src.pipeline.stages import Stages
from src.student.settings import EvaluationSettings
from tests.fixtures import cycle_examples
from tests.pipeline.toy import new_run, toy_settings, toy_stages, write_given_outputs


def record_settings(stages: Stages, folder: RunFolder) -> None:
    """What the entry points write before they work."""
    folder.write_yaml(SETTINGS_FILE, nested_plain(stages.settings))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A baseline and a distillation over the same small world, and the calls that opened a test split."""
    root = tmp_path_factory.mktemp("runs")
    outputs = write_given_outputs(root / "outputs", toy_stages(root).data)
    for name, run, more in (
        ("baseline", run_student_baseline, []),
        ("distilled", run_distill, [f"distill.outputs_from={outputs}", "distill.ed_weight=0.3"]),
    ):
        stages, folder = toy_stages(root, *more), new_run(root / "result" / name)
        record_settings(stages, folder)
        run(stages, folder)
    return root


def test_a_run_begins_with_what_its_data_are_like(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(run_module, "console", SimpleNamespace(print=lambda text, markup: said.append(text)))
    stages = toy_stages(tmp_path)
    describe_data(stages)
    assert said[0] == format_description(describe(stages.data))
    assert "repeated items" in said[0]
    # the test split of a toy is too small to tell much: that belongs to what is told first
    assert "note: the test split has" in said[0]
    monkeypatch.setattr(run_module, "DESCRIBED", len(stages.data.train))
    describe_data(stages)
    assert "train examples" in said[1]
    assert "python -m src.exp.describe" in said[1]
    assert "repeated items" not in said[1]


def test_a_baseline_run_leaves_exactly_these_files(runs: Path) -> None:
    folder = runs / "result" / "baseline"
    assert {
        str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file() and "tb" not in file.parts
    } == {
        "best_student/id_map.json",
        "best_student/manifest.json",
        "best_student/model.safetensors",
        "best_student/prior/manifest.json",
        "best_student/prior/model.safetensors",
        "best_student/stage.json",
        "comparison.csv",
        "manifest.json",
        "metrics/baseline.json",
        "metrics/popularity.json",
        "metrics/time.json",
        "ranks.csv",
        "segments.csv",
        "settings.yaml",
    }
    assert len(list((folder / "tb" / "student_baseline").glob("events.*"))) == 1


def test_a_distilled_students_folder_is_whole(runs: Path) -> None:
    folder = runs / "result" / "distilled"
    assert {file.name for file in (folder / "best_student").iterdir()} == {
        "id_map.json",
        "manifest.json",
        "model.safetensors",
        "prior",
    }
    assert set(pd.read_csv(folder / "comparison.csv").model) == {"popularity", "baseline", "distilled"}
    times = read_json_document(folder / "metrics" / "time.json")
    assert set(TIMES) <= set(times)
    assert times["distill_student_train_time"] > 0
    assert times["student_baseline_train_time"] > 0
    assert times["teacher_train_time_total"] == times["distill_teacher_export_time"] == 0.0  # outputs were given


def test_the_test_split_stays_closed(runs: Path) -> None:
    for folder in (runs / "result").iterdir():
        assert not list(folder.rglob("test_openings.jsonl"))
        assert set(pd.read_csv(folder / "comparison.csv").split) == {"validation"}


def test_no_run_even_asks_for_the_test_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the test split was opened")

    monkeypatch.setattr(SealedExamples, "open", refuse)
    stages = toy_stages(tmp_path)
    run_student_baseline(stages, new_run(tmp_path / "run"))
    with pytest.raises(AssertionError, match="opened"):
        ModelComparison(stages, closed_form_models(stages), with_teacher=False).test(
            new_run(tmp_path / "other"), "why", "who"
        )


def test_the_manifest_names_what_the_run_stood_on(runs: Path) -> None:
    manifest = read_json_document(runs / "result" / "distilled" / MANIFEST)
    stages = toy_stages(runs)
    assert manifest["kind"] == "distill"
    assert manifest["seed"] == 42
    models = {f"closed form: {name}": stages.closed_form(name).key for name in ("popularity", "linear")}
    stage_keys = {**models, "prior": stages.prior_record("linear").key, "student_baseline": stages.baseline.key}
    assert manifest["fingerprints"] == {**stages.data.fingerprints(), **stage_keys}
    assert set(manifest["reused_stages"]) == set(stage_keys)
    assert {"git", "versions", "hardware", "command", "started", "finished"} <= set(manifest)
    assert (
        manifest["teacher"]["rows_labelled"] == manifest["teacher"]["rows_in_training_split"] == len(stages.data.train)
    )
    assert "student_baseline" not in read_json_document(runs / "result" / "baseline" / MANIFEST)["reused_stages"]


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    from src.pipeline import run_folder

    original = run_folder.write_json

    def remember(path: Path, content: object) -> None:
        written.append(path.name)
        original(path, content)

    monkeypatch.setattr(run_folder, "write_json", remember)
    folder = new_run(tmp_path / "run")
    run_student_baseline(toy_stages(tmp_path), folder)
    assert written[-1] == MANIFEST
    newest = max(file.stat().st_mtime_ns for file in folder.path.rglob("*") if file.is_file())
    assert (folder.path / MANIFEST).stat().st_mtime_ns == newest


def test_a_run_that_fails_has_no_manifest(tmp_path: Path) -> None:
    folder = new_run(tmp_path / "run")
    outputs = tmp_path / "empty"
    outputs.mkdir()
    with pytest.raises(ArtefactError):
        run_distill(toy_stages(tmp_path, f"distill.outputs_from={outputs}"), folder)
    assert not (folder.path / MANIFEST).exists()


# ------------------------------------------------------------------------------------------------ comparison by hand


def test_the_tables_values_by_hand() -> None:
    examples = cycle_examples(4, first_id=100)
    ranked = ModelRanks.of("m", "validation", examples, torch.tensor([1, 3, 6, 20]))
    line = as_frame([comparison_row(ranked, (5, 10), trials=7)]).iloc[0]
    assert (line.model, line.split, line.examples, line.trials) == ("m", "validation", 4, 7)
    assert line.recall_5 == line.hit_ratio_5 == 2 / 4
    assert line.recall_10 == 3 / 4
    # ranks 1 and 3: 1 / log2(2) = 1 and 1 / log2(4) = 1/2
    assert line.ndcg_5 == pytest.approx((1 + 1 / 2) / 4, abs=1e-15)
    assert line.ndcg_10 == pytest.approx((1 + 1 / 2 + 1 / math.log2(7)) / 4, abs=1e-15)


def test_rankings_are_joined_by_example_id() -> None:
    examples = cycle_examples(5, first_id=100)
    full = ModelRanks.of("student", "test", examples, torch.tensor([10, 11, 12, 13, 14]))
    few = examples.take(np.array([3, 0]))
    own = ModelRanks.of("teacher", "test sample", few, torch.tensor([1, 2]))
    assert full.on(own).ranks.tolist() == [13, 10]
    frame = ranks_frame([own, full.on(own)])
    assert frame.example_id.tolist() == [103, 100, 103, 100]
    assert frame["rank"].tolist() == [1, 2, 13, 10]
    assert set(frame.split) == {"test sample"}


def test_a_sample_is_seeded_ordered_and_without_repeats() -> None:
    examples = cycle_examples(30, first_id=500)
    drawn = sample(examples, 10, seed=1, split="test").example_id
    assert (np.diff(drawn) > 0).all()
    assert drawn.tolist() == sample(examples, 10, seed=1, split="test").example_id.tolist()
    assert drawn.tolist() != sample(examples, 10, seed=2, split="test").example_id.tolist()
    assert drawn.tolist() != sample(examples, 10, seed=1, split="validation").example_id.tolist()
    assert sample(examples, 0, 1, "test") is examples
    assert sample(examples, 31, 1, "test") is examples


def test_popularity_ranks_by_training_targets_only(tmp_path: Path) -> None:
    stages = toy_stages(tmp_path)
    counts = np.bincount(stages.data.train.target, minlength=stages.data.num_items)
    target = stages.data.validation.target
    # more often is better; among equals the lower index comes first
    order = sorted(range(stages.data.num_items), key=lambda item: (-counts[item], item))
    by_hand = [order.index(item) + 1 for item in target]
    ranked = ModelComparison(stages, closed_form_models(stages), with_teacher=False).validation()[0]
    assert ranked.ranks.tolist() == by_hand


# ---------------------------------------------------------------------------------------------------- run_eval_all


def evaluation_of(root: Path, *folders: Path) -> EvaluateSettings:
    runtime = RuntimeSettings(device="cpu", cache=root / "cache")
    return EvaluateSettings(evaluation=EvaluationSettings(), runtime=runtime, results=folders)


def test_eval_all_opens_the_test_split_once_and_agrees_with_the_runs(runs: Path) -> None:
    settings = evaluation_of(runs, runs / "result" / "baseline", runs / "result" / "distilled")
    folder = new_run(runs / "evaluation")
    run_eval_all(settings, check_results(settings), folder)
    openings = folder.test_record.read_text(encoding="utf-8").splitlines()
    assert len(openings) == 1
    assert json.loads(openings[0])["test_split"] == toy_stages(runs).data.test.fingerprint
    found = pd.read_csv(folder.path / "comparison.csv").set_index(["model", "split"])
    assert set(found.index) == {
        (m, s) for m in ("popularity", "baseline/student", "distilled/student") for s in ("validation", "test")
    }
    for name, model in (("baseline", "baseline"), ("distilled", "distilled")):
        before = pd.read_csv(runs / "result" / name / "comparison.csv").set_index(["model", "split"])
        metrics = [column for column in before.columns if "_" in column]
        expected = before.loc[(model, "validation"), metrics]
        assert found.loc[(f"{name}/student", "validation"), metrics].tolist() == expected.tolist()
    assert read_json_document(folder.path / MANIFEST)["kind"] == "evaluate_all"


def test_eval_all_refuses_unfinished_and_damaged_results_together(runs: Path, tmp_path: Path) -> None:
    unfinished, damaged, foreign = tmp_path / "unfinished", tmp_path / "damaged", tmp_path / "foreign"
    for folder in (unfinished, damaged, foreign):
        shutil.copytree(runs / "result" / "baseline", folder)
    (unfinished / MANIFEST).unlink()
    (damaged / SETTINGS_FILE).write_text("a: [1", encoding="utf-8")
    (foreign / SETTINGS_FILE).write_text("results: [x]", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        check_results(evaluation_of(runs, unfinished, damaged, foreign, tmp_path / "missing"))
    text = str(caught.value)
    assert len(caught.value.problems) == 4
    for part in ("did not finish", "settings.yaml is missing or damaged", "holds no experiment", "does not exist"):
        assert part in text


def test_eval_all_refuses_another_dataset_by_name(runs: Path, tmp_path: Path) -> None:
    stages, folder = toy_stages(tmp_path, "dataset.sample_seed=9"), new_run(tmp_path / "other_world")
    record_settings(stages, folder)
    run_student_baseline(stages, folder)
    with pytest.raises(ConfigError) as caught:
        check_results(evaluation_of(runs, runs / "result" / "baseline", folder.path))
    assert {problem.field for problem in caught.value.problems} >= {"results: dataset", "results: split"}
    assert "other_world" in str(caught.value)


def test_eval_all_refuses_two_results_of_one_name(runs: Path, tmp_path: Path) -> None:
    shutil.copytree(runs / "result" / "baseline", tmp_path / "baseline")
    with pytest.raises(ConfigError, match="could not be told apart"):
        check_results(evaluation_of(runs, runs / "result" / "baseline", tmp_path / "baseline"))


def test_eval_all_computes_where_it_is_told_to(runs: Path, tmp_path: Path) -> None:
    # the result was made on a machine with a GPU
    moved = tmp_path / "moved"
    shutil.copytree(runs / "result" / "baseline", moved)
    content = yaml.safe_load((moved / SETTINGS_FILE).read_text(encoding="utf-8"))
    content["runtime"]["device"] = "cuda:0"
    (moved / SETTINGS_FILE).write_text(yaml.safe_dump(content), encoding="utf-8")
    lineup = check_results(evaluation_of(runs, moved))
    assert lineup.stages.device == torch.device("cpu")


def test_eval_all_tells_how_many_trials_found_a_student(runs: Path) -> None:
    result = FinishedResult.read(runs / "result" / "baseline")
    assert result.trials() == 1
    searched = FinishedResult(result.folder, result.experiment, {"search": {"trials": {"COMPLETE": 3, "PRUNED": 2}}})
    assert searched.trials() == 5


def test_the_same_seed_repeats_a_baseline_bit_by_bit(tmp_path: Path) -> None:
    weights = []
    for name in ("one", "two"):
        settings = toy_settings(tmp_path / name)
        stages = Stages(settings, StageCache(settings.runtime.cache))
        weights.append((stages.baseline.folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
