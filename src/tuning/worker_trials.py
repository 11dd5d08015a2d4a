"""The trials of one worker, as the driver sees them, and how it tells a population's worker what comes next.

A worker reports to the driver through Ray and goes on when the driver has taken the report in; what the driver decided
lies in the store by then, under a name that both know.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from src.tuning.dispatch import Dispatcher, Job
from src.tuning.store import Store

#: the store's folder of decisions
ORDERS = "orders"


@dataclass
class WorkerTrials:
    """Trials that a worker was given: the first ones, and those that took places which became free."""

    jobs: list[Job]

    @property
    def first(self) -> Job:
        """The one that the worker was started for."""
        return self.jobs[0]

    def open(self, dispatcher: Dispatcher) -> list[Job]:
        """Those that have not ended."""
        running = {job.start for job in dispatcher.running}
        return [job for job in self.jobs if job.start in running]

    def configuration(self, share: Mapping[str, Any]) -> dict[str, Any]:
        """What a population's worker is started with; ``share`` is its part of the machine."""
        parts = {name: share[name] for name in ("share", "memory")}
        return {"members": [member(job) for job in self.jobs], "orders": self.orders, **parts}

    @property
    def orders(self) -> str:
        """The place in the store where this worker finds what was decided."""
        return f"{ORDERS}/{self.first.start}.json"

    def take(self, dispatcher: Dispatcher, message: Mapping[str, Any]) -> None:
        """Take a round of reports in, fill free places, and leave the decisions in the store."""
        for start, report in message["reports"]:
            dispatcher.on_report(int(start), report)
        remaining = self.open(dispatcher)
        out_of_memory = any(report.get("kind") == "memory" for _, report in message["reports"])
        joined = (
            [] if out_of_memory else dispatcher.companions(self.first, dispatcher.room(self.first) - len(remaining))
        )
        self.jobs += joined
        decided = {
            "round": message["round"],
            "stay": [job.start for job in remaining],
            "joined": [member(job) for job in joined],
        }
        dispatcher.keep(self.orders, json.dumps(decided).encode())


def member(job: Job) -> dict[str, Any]:
    """What a population's worker gets of a trial."""
    return {"start": job.start, "number": job.number, "values": dict(job.values), "folder": job.folder}


@dataclass(frozen=True)
class RoundDecision:
    """What the driver says to a round: who goes on, and who joins."""

    stay: Sequence[int]
    joined: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, store: Store, orders: str, number: int) -> RoundDecision | None:
        """The decisions about a round; None where there are none: the driver is gone.

        Args:
            store: where the driver leaves them.
            orders: the file's name there, which the worker was started with.
            number: of the round, from 1.
        """
        content = store.read(orders)
        found = json.loads(content) if content is not None else {}
        return cls(found["stay"], found["joined"]) if found.get("round") == number else None
