"""What a run leaves in `result/result_<timestamp>/`.

The manifest is written last: a folder without one is unfinished.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from src.core.git_info import git_info
from src.core.hardware import command_line, hardware, package_versions
from src.core.paths import MANIFEST, write_json, write_text
from src.core.timing import Stopwatch
from src.pipeline.cache import StageRecord

#: the frozen settings of the run, which `run_eval_all` reads
SETTINGS_FILE = "settings.yaml"

#: names in `metrics/time.json` that are always there (mission, "Evaluation and time")
TIMES = (
    "teacher_train_time_total",
    "distill_teacher_export_time",
    "student_baseline_train_time",
    "distill_student_train_time",
)


@dataclass
class RunFolder:
    """One run's folder and its clock."""

    path: Path
    started: float = field(default_factory=time.time)
    watch: Stopwatch = field(default_factory=Stopwatch)

    @property
    def test_record(self) -> Path:
        """Where each opening of the test split is logged."""
        return self.path / "test_openings.jsonl"

    def write_metrics(self, name: str, metrics: Mapping[str, Any]) -> None:
        """`metrics/<name>.json`."""
        write_json(self.path / "metrics" / f"{name}.json", dict(metrics))

    def write_yaml(self, name: str, content: Any, heading: str = "") -> None:
        """A YAML file with an optional comment above it."""
        comment = "".join(f"# {line}\n" for line in heading.splitlines())
        write_text(self.path / name, comment + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))

    def copy_folder(self, source: Path, name: str) -> None:
        """Copy an artefact folder into the result."""
        shutil.copytree(source, self.path / name)

    def record_stage_times(self, records: Sequence[StageRecord]) -> None:
        """Add the seconds that each stage took when it was built, also where this run reused it."""
        names = {
            "student_baseline": "student_baseline_train_time",
            "teacher": "teacher_train_time_total",
            "teacher_outputs": "distill_teacher_export_time",
        }
        for record in records:
            if record.name in names:
                self.watch.add(names[record.name], record.seconds)

    def finish(self, kind: str, seed: int, fingerprints: Mapping[str, str], extra: Mapping[str, Any]) -> None:
        """Write `metrics/time.json` and then, last and atomically, the manifest."""
        times = {name: self.watch.seconds.get(name, 0.0) for name in TIMES}
        self.write_metrics("time", {**times, **self.watch.seconds, "wall_time": time.time() - self.started})
        manifest = {
            "kind": kind,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(self.started)),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": command_line(),
            "git": git_info(),
            "versions": package_versions(),
            "hardware": hardware(),
            "seed": seed,
            "fingerprints": dict(fingerprints),
            **extra,
        }
        write_json(self.path / MANIFEST, manifest)
