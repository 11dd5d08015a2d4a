"""The main job for real, small: every file that it leaves, and what they promise."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
import yaml

from src.config.reading import read_settings
from src.core.checkpoints import load_weights
from src.core.paths import require_finished
from src.data.dataset import load_dataset
from src.data.settings import DatasetSettings
from src.evaluation.example_histories import read_examples
from src.exp.run_distill import ENTRY as DISTILL
from src.exp.run_eval_all import ENTRY as EVALUATE
from src.exp.tune_distill import ENTRY as TUNE
from src.tuning.search import first_trials
from src.tuning.search_settings import TuneSettings
from src.tuning.trial_values import neutral_trial

SMALL = {"sample_users": 60, "sample_items": 60, "sample_interactions": 1500}
OVERRIDES = [f"dataset.{key}={value}" for key, value in SMALL.items()] + ["student.width=16", "student.loop.epochs=3"]
SPACE = """
stage: distill
metric: ndcg_20
direction: maximize
parameters:
  distill.lam: {type: float, low: 0.0, high: 1.0}
  distill.ed_weight: {type: float, low: 0.0, high: 1.0e+38}
  active.policy: {type: categorical, choices: [all, kl_divergence]}
  active.kl_threshold: {type: float, low: 0.01, high: 0.5, when: {active.policy: kl_divergence}}
"""


def _outputs(folder: Path) -> None:
    """DLLM2Rec's three files, from a teacher that knows the answers."""
    data = load_dataset(DatasetSettings(**SMALL))
    folder.mkdir()
    rows = (data.train.target[:, None] + np.arange(20)) % data.num_items
    np.savetxt(folder / "myrank_train.txt", rows, fmt="%d")
    np.savetxt(folder / "confidence_train.txt", np.tile(np.linspace(0.1, 4, 20), (len(rows), 1)))
    torch.save(torch.randn(data.num_items, 8), folder / "all_embeddings.pt")


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which a search has run."""
    folder = tmp_path_factory.mktemp("job")
    _outputs(folder / "outputs")
    (folder / "space.yaml").write_text(SPACE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = [*OVERRIDES, "distill.outputs_from=outputs", "tuning.search_space=space.yaml", "trials=4"]
        before = set(psutil.Process().children(recursive=True))
        assert TUNE.execute([*arguments, "hydra.run.dir=found"]) == 0
        # Ray's own processes may take a moment to go
        left = set(psutil.Process().children(recursive=True)) - before
        assert psutil.wait_procs(left, timeout=30)[1] == []
    return folder


@pytest.mark.slow
def test_the_result_folder(workplace: Path) -> None:
    found = workplace / "found"
    names = {path.name for path in found.iterdir()}
    assert names == {
        "best_params.yaml", "best_student", "command.json", "comparison.csv", "config", "dashboard_files",
        "manifest.json", "metrics", "ranks.csv", "report.html", "run.log", "search_space.yaml", "segments.csv",
        "settings.yaml", "study.journal", "tb", "test_openings.jsonl", "trials", "trials.csv",
    }  # fmt: skip
    assert {path.name for path in (found / "best_student").iterdir()} == {
        "id_map.json",
        "manifest.json",
        "model.safetensors",
        "prior",
        "trial.json",
    }
    examples = read_examples(found / "metrics" / "examples.json")
    assert (examples.models["baseline"], examples.models["winner"]) == ("baseline", "distilled")
    assert "labels of training examples" in examples.no_teacher  # they were given
    assert len(examples.examples) == 12
    assert "No lists of the teacher" in (found / "report.html").read_text()
    times = json.loads((found / "metrics" / "time.json").read_text())
    assert times["student_baseline_train_time"] > 0
    assert times["distill_student_train_time"] > 0
    youngest = max((path for path in found.rglob("*") if path.is_file()), key=lambda path: path.stat().st_mtime_ns)
    assert youngest == found / "manifest.json"


@pytest.mark.slow
def test_the_first_trial_is_the_baseline_and_the_winner_is_never_worse(workplace: Path) -> None:
    found = workplace / "found"
    manifest = require_finished(found)
    assert manifest["search"]["first_trial_reproduces_baseline"] is True
    table = pd.read_csv(found / "comparison.csv").set_index(["model", "split"])
    best, baseline = table.loc[("distilled", "validation")], table.loc[("baseline", "validation")]
    assert best["ndcg_20"] >= baseline["ndcg_20"]
    assert (best["trials"], baseline["trials"]) == (4, 1)
    for name in ("popularity", "transitions", "ease", "linear"):
        assert table.loc[(name, "test")]["trials"] >= 1
    (cached,) = (workplace / "data" / "cache" / "student").iterdir()
    # at most three trials completed, and so many keep their students
    first = found / "trials" / "0" / "model" / "model.safetensors"
    alone, taught = load_weights(cached / "model.safetensors"), load_weights(first)
    assert set(alone) == set(taught)
    assert all(torch.equal(alone[name], taught[name]) for name in alone)


@pytest.mark.slow
def test_a_trial_that_diverges_is_failed_and_the_search_goes_on(workplace: Path) -> None:
    trials = pd.read_csv(workplace / "found" / "trials.csv")
    assert len(trials) == 4
    failed = trials[trials["state"] == "FAIL"]
    # ed_weight is drawn up to 1e38: float32 does not survive it
    assert len(failed) >= 1
    assert failed["failure"].str.len().min() > 0
    assert failed["ndcg_20"].isna().all()


@pytest.mark.slow
def test_the_test_split_is_opened_once(workplace: Path) -> None:
    lines = (workplace / "found" / "test_openings.jsonl").read_text().splitlines()
    assert len(lines) == 1
    assert "winner" in json.loads(lines[0])["reason"]


@pytest.mark.slow
def test_best_params_replay_to_the_same_metrics_without_opening_test(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workplace)
    assert DISTILL.execute(["params=found/best_params.yaml", "hydra.run.dir=again"]) == 0
    assert not (workplace / "again" / "test_openings.jsonl").exists()
    splits = [
        pd.read_csv(workplace / name / "comparison.csv").set_index(["model", "split"]) for name in ("found", "again")
    ]
    first, second = (table.loc[("distilled", "validation")].drop("trials") for table in splits)
    pd.testing.assert_series_equal(first, second, check_exact=True)
    assert "student_baseline" in require_finished(workplace / "again")["reused_stages"]


@pytest.mark.slow
def test_results_are_evaluated_side_by_side(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    assert EVALUATE.execute(["results=[found]", "hydra.run.dir=judged"]) == 0
    table = pd.read_csv(workplace / "judged" / "comparison.csv").set_index(["model", "split"])
    original = pd.read_csv(workplace / "found" / "comparison.csv").set_index(["model", "split"])
    assert table.loc[("found/student", "test")]["ndcg_20"] == original.loc[("distilled", "test")]["ndcg_20"]
    (workplace / "unfinished").mkdir(exist_ok=True)
    assert EVALUATE.execute(["results=[found,unfinished]"]) == 2
    assert "did not finish" in capsys.readouterr().out


def test_best_params_hold_only_what_differs(workplace: Path) -> None:
    keys = yaml.safe_load((workplace / "found" / "best_params.yaml").read_text())
    assert keys["student.width"] == 16
    assert keys["distill.outputs_from"] == str(workplace / "outputs")
    assert "student.heads" not in keys


@pytest.mark.slow
def test_the_fair_protocol_answers_for_every_arm(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(workplace)
    arguments = [*OVERRIDES, "distill.outputs_from=outputs", "protocol=fair", "trials=2", "tuning.seeds=2"]
    arguments += ["tuning.finalist_seeds=1", "tuning.resamples=1000", "student.loop.epochs=2"]
    assert TUNE.execute([*arguments, "hydra.run.dir=fair"]) == 0
    answer = json.loads((workplace / "fair" / "fair.json").read_text())
    names = ["student", "dro", "ranking", "embedding", "text", "soft", "everything"]
    names += ["labels_of_self", "labels_of_linear"]
    closed_forms = ["popularity", "transitions", "ease", "linear"]
    assert [arm["arm"] for arm in answer["arms"]] == [*names, *closed_forms]
    with_seeds = answer["arms"][: len(names)]
    for arm in with_seeds:
        # other seeds than the one with which the configuration was chosen
        assert (arm["trials"], arm["seeds"]) == (2, [43, 44])
        assert arm["low"] <= arm["test"] <= arm["high"]
        assert arm["test"] == pytest.approx(sum(arm["values_per_seed"]) / 2)
    assert {key for arm in answer["arms"] if arm["arm"] == "student" for key in arm["params"]} == {
        "student.learning_rate",
        "student.dropout",
    }
    assert [line["against"] for line in answer["comparisons"]] == ["student"] * (len(names) + len(closed_forms) - 1)
    assert answer["missing"] == {}
    # the published student's card, for optuna-dashboard
    (card,) = (workplace / "fair" / "dashboard_files").iterdir()
    published = require_finished(workplace / "fair")["search"]["published"]
    assert card.read_text().startswith(
        f"# The student of arm {published['arm']}, trained with seed {published['seed']}"
    )
    models = read_examples(workplace / "fair" / "metrics" / "examples.json").models
    student = next(arm for arm in with_seeds if arm["arm"] == "student")
    assert models["baseline"] == f"student (seed {student['seeds'][0]})"
    assert models["closed form"] in closed_forms
    shown = " ".join(capsys.readouterr().out.split())
    assert all(line["sentence"] in shown for line in answer["comparisons"])
    assert f"report: {workplace / 'fair' / 'report.html'} {workplace / 'fair'}" in shown  # its last words
    trials = pd.read_csv(workplace / "fair" / "trials.csv")
    assert trials.groupby("study").size().to_dict() == {**dict.fromkeys(names, 2), "finals": 2 * len(names)}
    # what the arms share is drawn alike
    shared = trials[trials["study"] != "finals"].pivot(index="trial", columns="study", values="student.dropout")
    assert (shared.nunique(axis=1) == 1).all()
    # models of every seed and arm are kept; the prior that they share, once
    priors = [path.stat() for path in (workplace / "fair" / "trials" / "finals").glob("*/model/prior/*.safetensors")]
    assert len(priors) == 2 * len(names)
    assert len({prior.st_ino for prior in priors}) == 1
    lines = (workplace / "fair" / "test_openings.jsonl").read_text().splitlines()
    assert len(lines) == 1
    table = pd.read_csv(workplace / "fair" / "comparison.csv").set_index(["model", "split"])
    for arm in with_seeds:
        per_seed = [table.loc[(f"{arm['arm']} (seed {seed})", "test")]["ndcg_20"] for seed in arm["seeds"]]
        assert arm["values_per_seed"] == pytest.approx(per_seed)
    # its seed is the student's own: prior, teachers and labels are those of the search
    assert DISTILL.execute(["params=fair/best_params.yaml", "hydra.run.dir=fair_again"]) == 0
    published, again = (
        load_weights(workplace / name / "best_student" / "model.safetensors") for name in ("fair", "fair_again")
    )
    assert all(torch.equal(published[name], again[name]) for name in published)


@pytest.mark.slow
def test_a_warm_start_tries_the_earlier_best_first(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    arguments = [*OVERRIDES, "distill.outputs_from=outputs", "tuning.search_space=space.yaml", "trials=2"]
    asked = [*arguments, "warm_start=found", "tuning.warm_start_trials=1"]
    settings = read_settings(TUNE.config_name, asked, TuneSettings)[0]
    prepared = TUNE.check(settings)
    begin, *others = first_trials(settings, prepared.stages.settings, prepared.space)
    assert begin == neutral_trial(prepared.space, prepared.stages.settings)
    earlier = pd.read_csv(workplace / "found" / "trials.csv")
    best = earlier[earlier["state"] == "COMPLETE"].sort_values("ndcg_20", ascending=False).iloc[0]
    assert others == [{key: best[key] for key in prepared.space.parameters if pd.notna(best[key])}]
    assert TUNE.execute([*arguments, "warm_start=outputs"]) == 2
