"""What a pretrained decoder's labels and item embeddings add to the student, at fixed weights.

The teacher's own figures come from `run_teacher` with the same overrides; this trains the student alone, with the
decoder's embeddings of the items' titles, with its labels, with both, and with labels of its own, on the same seeds.
Everything is read off the validation split; the test split stays closed.

    python -m benchmarks.real_decoder --out FOLDER --seeds 2 -- dataset=recbole dataset.root=PATH/ml-100k \
        dataset.name=ml-100k teacher.llm=PATH/smollm2 teacher.dtype=bfloat16 teacher.lora.compute=base …

A training whose ranks lie in the folder already is not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rare_items import OFF, STUDENT, table, validation_ranks
from src.config.reading import read_settings
from src.core.logging import log_to
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.teachers import LLM, SELF, TITLES
from src.distill.trainer_distill import train_distilled
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.models import require_network

#: whose outputs, and the terms' weights, of each arm
ARMS: dict[str, tuple[str, dict[str, float]]] = {
    STUDENT: (TITLES, OFF),
    "item embeddings": (TITLES, {**OFF, "ed_weight": 0.5}),
    "labels": (LLM, {**OFF, "lam": 0.5}),
    "both": (LLM, {**OFF, "lam": 0.5, "ed_weight": 0.5}),
    "its own labels": (SELF, {**OFF, "lam": 0.5}),
}


def ranks_of(stages: Stages, arm: str, seed: int) -> NDArray[np.int64]:
    """Train an arm; the ranks of the validation targets."""
    settings = stages.settings
    teacher, weights = ARMS[arm]
    outputs = stages.outputs_of([teacher])
    stages.release_teacher()
    asked: dict[str, Any] = {**weights, "teachers": (teacher,)}
    run = train_distilled(
        require_network(settings.student), DistillSettings(**asked), ActiveSettings(), settings.evaluation,
        stages.student_data, align(outputs, stages.data.train, outputs.candidates.shape[1], stages.device), seed,
    )  # fmt: skip
    print(f"{arm}, seed {seed}: epoch {run.fit.best_epoch} of {run.fit.epochs}, {run.fit.seconds:.0f} s", flush=True)
    return validation_ranks(stages, run.student.eval())


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the ranks and the table")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    parser.add_argument("overrides", nargs="*", help="of the configuration, after --")
    options = parser.parse_args()
    log_to(None)
    settings, _ = read_settings("config", options.overrides, ExperimentSettings)
    stages = Stages(settings, StageCache(settings.runtime.cache))
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[NDArray[np.int64]]] = {}
    # a seed of every arm before the next seed: an unfinished run compares all arms
    for seed in range(settings.seed + 1, settings.seed + 1 + options.seeds):
        for arm in dict.fromkeys([STUDENT, *options.arms]):
            file = options.out / f"{arm.replace(' ', '_')}_{seed}.npy"
            if not file.exists():
                np.save(file, ranks_of(stages, arm, seed))
            found.setdefault(arm, []).append(np.load(file))
        ranks = {arm: np.stack(of_seeds) for arm, of_seeds in found.items() if len(of_seeds) == len(found[STUDENT])}
        frame = table(stages, ranks)
        frame.to_csv(options.out / "table.csv", index=False)
        print(frame.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
