"""What is a label worth? A student's NDCG@20 against the share of training examples that the teacher labels.

    python -m benchmarks.label_budget --folder FOLDER -- dataset=… teacher.llm=…   (overrides, as of run_distill)

One teacher; every selector of `teacher.export.select` at every budget; the same student and the same distillation
settings on some seeds at each point. Two lines beside them: no teacher at all, and no labels (lam = 0: the teacher's
item embeddings alone, which every other point has, too). The label cache pays for each example once, so the largest
budget is the cost of all. Every student's epoch is chosen on validation; the test split is opened once, at the end, for
all of them. Each point is compared with no labels, paired by example and seed (`src.evaluation.paired`). What is
finished in FOLDER is not trained again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from src.config.reading import read_settings
from src.core.data_utils import fingerprint
from src.core.logging import log_to
from src.core.paths import require_finished, write_json, write_text
from src.core.seed import numpy_generator
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import align
from src.distill.trainer_distill import train_distilled
from src.evaluation.paired import PairedComparison, compare, gain
from src.pipeline.cache import StageCache
from src.pipeline.preflight import check_experiment
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.artefact import load_student, save_student
from src.student.evaluator import rank_examples
from src.student.trainer_baseline import train_student

NO_TEACHER, NO_LABELS = "no teacher", "item embeddings alone"
SELECTORS = ("random", "most_recent", "student_uncertain", "student_wrong", "diverse")
METRIC, TOP = "ndcg_20", 20
RESAMPLES = 10_000
_BESIDE = 1.06  # of two neighbours' places on the logarithmic axis


@dataclass(frozen=True)
class Point:
    """One training: a selector (or one of the two lines), the share of examples that are labelled, a seed."""

    select: str
    budget: float
    seed: int

    @property
    def name(self) -> str:
        """As a folder."""
        return f"{self.select.replace(' ', '_')}-{self.budget:g}-{self.seed}"

    @property
    def arm(self) -> str:
        """What its seeds share."""
        return f"{self.select} {self.budget:g}"


def points(budgets: Sequence[float], selectors: Sequence[str], seeds: Sequence[int]) -> list[Point]:
    """Every training; at a budget of 1 all selectors are the same."""
    found = []
    for seed in seeds:
        found += [Point(NO_TEACHER, 0.0, seed), Point(NO_LABELS, 0.0, seed)]
        found += [Point("random", 1.0, seed) for budget in budgets if budget == 1]
        found += [Point(select, budget, seed) for budget in budgets if budget < 1 for select in selectors]
    return found


def asked(settings: ExperimentSettings, point: Point) -> ExperimentSettings:
    """The experiment of a point. The run's own seed stays: teacher, labels and the order of rows are the same."""
    given = settings.teacher.export
    # without labels only the item embeddings are read, which come with any: those of the run's own budget
    budget, select = (point.budget, point.select) if point.budget else (given.budget, given.select)
    distill = replace(settings.distill, lam=0.0) if point.select == NO_LABELS else settings.distill
    export = replace(given, budget=budget, select=select)
    return replace(settings, teacher=replace(settings.teacher, export=export), distill=distill)


def stages_of(settings: ExperimentSettings) -> Stages:
    """Stages over the run's cache."""
    return Stages(settings, StageCache(settings.runtime.cache))


def train(settings: ExperimentSettings, point: Point, folder: Path) -> None:
    """Train a point's student on one thread and keep it; a finished one is left as it is."""
    if folder.exists():
        return
    stages = stages_of(asked(settings, point))
    chosen, data = stages.settings, stages.student_data
    if point.select == NO_TEACHER:
        run = train_student(chosen.student, chosen.evaluation, data, point.seed)
        student, fit, labels = run.student, run.fit, 0
    else:
        outputs = stages.outputs
        taught = align(outputs, stages.data.train, chosen.distill.candidate_topk, stages.device)
        distilled = train_distilled(
            chosen.student, chosen.distill, chosen.active, chosen.evaluation, data, taught, point.seed
        )
        student, fit = distilled.student, distilled.fit
        labels = 0 if point.select == NO_LABELS else len(outputs)
    extra = {"fit": asdict(fit), "labels": labels}
    save_student(folder, student, chosen.student, stages.data.id_map, stages.data.fingerprints(), extra)
    print(f"{point.name:32} {labels:7} labels   validation {METRIC} {fit.best_metrics[METRIC]:.4f}", flush=True)


def measure(settings: ExperimentSettings, todo: Sequence[Point], folder: Path) -> list[dict[str, Any]]:
    """Every student on validation (as it was chosen) and on the test split, which this opens once; a row a selector
    and budget.
    """
    stages = stages_of(settings)
    test = stages.data.test.open(
        "the label budget's students", folder / "test_openings.jsonl", fingerprint([asdict(point) for point in todo])
    )
    columns, rows = TensorExamples.of(test, stages.device), []
    gains: dict[str, list[NDArray[np.float64]]] = {}
    for point in todo:
        place = folder / "students" / point.name
        manifest = require_finished(place)
        student = load_student(place, stages.data)[0].to(stages.device).eval()
        found = gain(rank_examples(student, columns, settings.evaluation).cpu(), TOP)
        gains.setdefault(point.arm, []).append(found)
        rows.append(
            {**asdict(point), "arm": point.arm, "labels": manifest["labels"], "test": float(found.mean())}
            | {"validation": manifest["fit"]["best_metrics"][METRIC]}
        )
    scores = {arm: np.stack(found) for arm, found in gains.items()}
    compared = compare(
        scores, test.user, f"{NO_LABELS} 0", RESAMPLES, numpy_generator(0, "label_budget"), metric=METRIC
    )
    return summary(rows, {found.name: found for found in compared})


def summary(rows: Sequence[dict[str, Any]], compared: Mapping[str, PairedComparison]) -> list[dict[str, Any]]:
    """Mean over seeds and range of each selector and budget, and its comparison with no labels."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for found in rows:
        groups.setdefault(found["arm"], []).append(found)
    table = []
    for arm, group in groups.items():
        line = {name: group[0][name] for name in ("select", "budget", "labels")}
        line |= {split: statistics.mean(found[split] for found in group) for split in ("validation", "test")}
        seen = [found["test"] for found in group]
        line |= {"seeds": len(group), "test_low": min(seen), "test_high": max(seen)}
        if arm in compared:
            kept = ("difference", "low", "high", "p_corrected", "verdict", "users")
            line["against_no_labels"] = {name: getattr(compared[arm], name) for name in kept}
        table.append(line)
    return table


def figure(table: Sequence[dict[str, Any]], title: str) -> go.Figure:
    """Test NDCG@20 against the budget, a line a selector, bars from the worst seed to the best."""
    drawn = go.Figure()
    whole = [line for line in table if line["budget"] == 1]
    selectors = list(dict.fromkeys(line["select"] for line in table if line["budget"] > 0))
    for place, select in enumerate(selectors):
        # side by side, so that the bars do not hide each other
        beside = _BESIDE ** (place - (len(selectors) - 1) / 2)
        own = sorted(
            [line for line in table if line["select"] == select and line["budget"] < 1] + whole,
            key=lambda line: float(line["budget"]),
        )
        drawn.add_scatter(
            x=[100 * line["budget"] * beside for line in own],
            y=[line["test"] for line in own],
            error_y={
                "type": "data",
                "symmetric": False,
                "array": [line["test_high"] - line["test"] for line in own],
                "arrayminus": [line["test"] - line["test_low"] for line in own],
                "thickness": 1,
            },
            name=select.replace("_", " "),
            mode="lines+markers",
        )
    for name, dash in ((NO_TEACHER, "dot"), (NO_LABELS, "dash")):
        level = next(line["test"] for line in table if line["select"] == name)
        drawn.add_hline(y=level, line_dash=dash, line_color="grey", annotation_text=name, annotation_font_color="grey")
    drawn.update_layout(title=title, template="plotly_white", width=900, height=520, margin={"t": 60, "r": 20})
    shares = sorted({100 * line["budget"] for line in table if line["budget"] > 0})
    drawn.update_xaxes(title="labelled training examples (%)", type="log", tickvals=shares)
    drawn.update_yaxes(title="test NDCG@20, mean of the seeds")
    return drawn


def main() -> None:
    """Label, train what is missing, measure, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3, 1.0])
    parser.add_argument("--select", nargs="+", default=list(SELECTORS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--title", default="What a label is worth")
    parser.add_argument("overrides", nargs="*")
    options = parser.parse_args()
    overrides = options.overrides
    if not all(0 < budget <= 1 for budget in options.budgets):
        parser.error("--budgets are shares of the training examples, above 0 up to 1")
    log_to(None)
    settings, _ = read_settings("config", overrides, ExperimentSettings)
    check_experiment(settings, teacher=True)
    todo = points(options.budgets, options.select, options.seeds)
    identity = fingerprint({**asdict(settings), "runtime": None})
    folder = options.folder.resolve() / identity  # other overrides: other students
    folder.mkdir(parents=True, exist_ok=True)
    for budget, select in dict.fromkeys((point.budget, point.select) for point in reversed(todo)):
        _ = stages_of(asked(settings, Point(select, budget, 0))).outputs  # here, once; the trainings find them
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(train, settings, point, folder / "students" / point.name) for point in todo]
        for job in jobs:
            job.result()
    table = measure(settings, todo, folder)
    write_json(folder / "label_budget.json", {"overrides": overrides, "summary": table})
    write_text(
        folder / "label_budget.html",
        figure(table, options.title).to_html(include_plotlyjs=True, config={"displayModeBar": False}),
    )
    print(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
