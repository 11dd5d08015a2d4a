"""Trials' curves: what a worker sends, and what the driver draws of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from src.core.watching import TrainingStatus
from src.pipeline.tracking import Outcome
from src.tuning.dispatch import Job
from src.tuning.study import SEARCH
from src.tuning.trial_curves import CurveReporter, TrialCurves, run_name, table_name, trial_curves


@dataclass
class Drawn:
    """A tracker and its only kind of run."""

    points: list[tuple[str, str, int, dict[str, float]]] = field(default_factory=list)
    closed: list[str] = field(default_factory=list)

    def run(self, name: str) -> Any:
        """One that says its name."""
        drawn = self

        class Named:
            def log(self, axis: str, at: int, values: Mapping[str, float]) -> None:
                drawn.points.append((name, axis, at, dict(values)))

            def close(self) -> None:
                drawn.closed.append(name)

        return Named()

    def table(self, name: str, parameters: object, outcomes: list[Outcome]) -> None:
        """Not asked here."""


def job(number: int, study: str = SEARCH) -> Job:
    return Job(study, number, {}, str(number), number + 1)


def test_a_worker_sends_looks_with_its_epochs_and_in_long_ones_every_half_minute() -> None:
    told, now = list[Mapping[str, Any]](), [0.0]
    curves = CurveReporter(told.append, lambda: now[0])
    for at, step in ((5.0, 1), (31.0, 2), (40.0, 3)):
        now[0] = at
        curves.update(TrainingStatus(step, 9, {"loss": float(step)}))
    assert told == [{"kind": "points", "points": [(1, {"loss": 1.0}), (2, {"loss": 2.0})]}]
    curves.epoch(1, TrainingStatus(4, 9, {"learning_rate": 0.5}), {"ndcg": 0.25})
    said = curves.taken({"ndcg": 0.25, "train_loss": 2.0})
    assert said == {
        "points": [(3, {"loss": 3.0}), (4, {"learning_rate": 0.5})],
        "metrics": {"ndcg": 0.25, "train_loss": 2.0},
    }
    assert curves.taken({}) == {"points": [], "metrics": {}}
    # an epoch that a checkpoint brought along has its metrics alone
    curves.epoch(1, TrainingStatus(4, 9, {}), {"ndcg": 0.25})
    assert curves.taken({})["points"] == []


def test_the_driver_draws_what_is_sent_and_closes_what_has_ended() -> None:
    drawn = Drawn()
    with trial_curves(drawn) as curves:
        sent = {"kind": "epoch", "epoch": 1, "objective": 0.5, "points": [(4, {"loss": 3.0})], "metrics": {"ndcg": 0.5}}
        curves.take(job(0), json.loads(json.dumps(sent)))
        curves.take(job(1, "arm 2"), {"kind": "points", "points": [[2, {"loss": 1.0}]]})
        curves.take(job(0), {"kind": "done", "values": [0.5], "attributes": {}})
        assert drawn.closed == ["trial_0000"]
        # a report of an older kind says nothing about curves
        curves.take(job(2), {"kind": "epoch", "epoch": 1, "objective": 0.5})
        curves.end(job(2))
    assert drawn.points == [
        ("trial_0000", "step", 4, {"train/loss": 3.0}),
        ("trial_0000", "epoch", 1, {"validation/ndcg": 0.5}),
        ("arm_2/trial_0001", "step", 2, {"train/loss": 1.0}),
    ]
    assert drawn.closed == ["trial_0000", "arm_2/trial_0001"]


def test_a_stopped_trial_leaves_no_run_open() -> None:
    drawn = Drawn()
    curves = TrialCurves(drawn)
    curves.take(job(3), {"kind": "points", "points": [[1, {"loss": 1.0}]]})
    curves.end(job(3))
    curves.close()
    assert drawn.closed == ["trial_0003"]


def test_runs_are_named_after_their_trials() -> None:
    assert (table_name(SEARCH), run_name(SEARCH, 7)) == ("", "trial_0007")
    assert run_name("finalists of 8 trials", 12) == "finalists_of_8_trials/trial_0012"
