"""What texts of items add to the linear model, and to the student that has it for its prior; and what a fit costs.

Validation only, by how often the target was seen: the linear model, the same drawn towards similarities of the items'
texts (strength and other settings chosen on validation among as many settings as the linear model has), the student
with each of them for its prior, and the latter with the two terms that read texts. The test split stays closed. With
``--cost`` it compares, in CPU seconds, a prior as it is fitted with one whose systems are solved whole.

    python -m benchmarks.linear_text --out FOLDER --seeds 1 -- dataset=recbole dataset.root=PATH dataset.name=ml-100k \
        'dataset.item_text="{title} ({year}), {genres}"' teacher.llm=PATH/all-MiniLM-L6-v2

A training whose ranks lie in the folder already is not repeated.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

import src.student.ridge as ridge
from benchmarks.rare_items import OFF, STUDENT, table, validation_ranks
from src.config.reading import read_settings
from src.core.logging import log_to
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.teachers import TITLES
from src.distill.trainer_distill import train_distilled
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.student.architectures.linear import LinearSettings
from src.student.decayed_history import history_times_history, history_times_target, times_matrix
from src.student.models import require_network, student_settings
from src.student.new_items import text_directions
from src.student.prior import fit_prior

LINEAR, TEXT_LINEAR = "linear", "text_linear"
BOTH = {**OFF, "ed_weight": 0.5, "text_weight": 0.3}
#: each student: its prior, and the terms that it is trained with
STUDENTS = {
    STUDENT: (LINEAR, OFF),
    "student, prior drawn to texts": (TEXT_LINEAR, OFF),
    "student + both terms": (LINEAR, BOTH),
    "student, prior drawn to texts + both terms": (TEXT_LINEAR, BOTH),
}


def with_prior(settings: ExperimentSettings, name: str) -> Stages:
    """The experiment whose student has this prior."""
    student = replace(require_network(settings.student), prior=name)
    return Stages(replace(settings, student=student), StageCache(settings.runtime.cache))


def student_ranks(stages: Stages, terms: dict[str, float], seed: int) -> NDArray[np.int64]:
    """Train a student; the ranks of the validation targets."""
    settings, outputs = stages.settings, stages.outputs_of([TITLES])
    teaching = align(outputs, stages.data.train, outputs.candidates.shape[1], stages.device)
    run = train_distilled(
        require_network(settings.student), DistillSettings(**terms), ActiveSettings(), settings.evaluation,
        stages.student_data, teaching, seed,
    )  # fmt: skip
    print(f"seed {seed}: epoch {run.fit.best_epoch} of {run.fit.epochs}, {run.fit.seconds:.0f} s", flush=True)
    return validation_ranks(stages, run.student.eval())


def compare_costs(stages: Stages, folds: int) -> None:
    """CPU seconds of a prior, and of the same with every system solved whole."""
    data = stages.student_data
    for told, size in (("in parts", ridge._SMALL), ("solved whole", 10**9)):
        ridge._SMALL = size
        start = time.process_time()
        found = fit_prior(student_settings(LINEAR), data.train, data.validation, data.num_items, folds, 0)
        print(
            f"prior of {folds} folds, {told}: {time.process_time() - start:.0f} CPU s, scale {found.scale:.6f}",
            flush=True,
        )


def compare_strengths(stages: Stages) -> None:
    """NDCG of every third validation example for each strength of the pull, all / seen / never seen in training.

    The solution is linear in the pull, W = (G + λ I)⁻¹ Σ h eᵀ + c · [λ (G + λ I)⁻¹ S] · (S / (1 + n)ᵖ)ᵀ, S the texts'
    directions; both factors are solved for once. The diagonal of W₀ is left in: items of the history alone feel it.
    """
    text = torch.from_numpy(np.array(stages.outputs_of([TITLES]).item_embedding)).double()
    data, settings, k = stages.student_data, LinearSettings(), max(stages.settings.evaluation.ks)
    everyone, items = torch.arange(len(data.train)), data.num_items
    seen = (data.train, everyone, items, settings.window, settings.decay)
    directions = text_directions(text, text.mean(dim=0))
    right = torch.cat([history_times_target(*seen), settings.l2 * directions], dim=1)
    owner = ridge.owners_of_items(data.train, everyone, items)
    solved = ridge.solve_ridge(history_times_history(*seen), right, settings.l2, owner).float()
    rows, counts = torch.arange(0, len(data.validation), 3), data.item_counts
    target = data.validation.target[rows]
    history, length = data.validation.read(rows, settings.window)
    shown = torch.cat(
        [
            times_matrix(*part, settings.decay, solved)
            for part in zip(history.split(512), length.split(512), strict=True)
        ]
    )
    alone, pulled = shown[:, :items], shown[:, items:] @ directions.T.float()
    for rarity in (0.0, 0.1, 0.25, 0.5, 1.0):
        for weight in (0.0, 0.0005, 0.001, 0.002, 0.003):
            scores = alone + weight * pulled * (1 + counts) ** -rarity
            own = scores.gather(1, target.unsqueeze(1))
            rank = ((scores > own).sum(dim=1) + (scores == own).sum(dim=1)).double()
            gained = torch.where(rank <= k, 1 / torch.log2(rank + 1), 0.0)
            known = counts[target] > 0
            told = [float(gained[part].mean()) for part in (known | ~known, known, ~known)]
            print(f"rarity {rarity} weight {weight}: " + " / ".join(f"{value:.4f}" for value in told), flush=True)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the ranks and the table")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each student")
    parser.add_argument("--cost", type=int, default=0, help="folds of a prior whose cost is measured; 0: none")
    parser.add_argument("--strengths", action="store_true", help="only how the linear model takes each strength")
    parser.add_argument("overrides", nargs="*", help="of the configuration, after --")
    options = parser.parse_args()
    log_to(None)
    torch.set_num_threads(1)
    settings, _ = read_settings("config", options.overrides, ExperimentSettings)
    stages = {name: with_prior(settings, name) for name in (LINEAR, TEXT_LINEAR)}
    options.out.mkdir(parents=True, exist_ok=True)
    if options.strengths:
        compare_strengths(with_prior(settings, "none"))
        return
    if options.cost:
        compare_costs(with_prior(settings, "none"), options.cost)
    ranks: dict[str, NDArray[np.int64]] = {}
    for name, own in stages.items():
        file = options.out / f"{name}.npy"
        if not file.exists():
            record = own.closed_form(name)
            np.save(file, validation_ranks(own, own.load_student(record).eval()))
            print(name, own.cache.records[-1].seconds, (record.folder / "manifest.json").read_text(), flush=True)
        ranks[name] = np.load(file)[None]
    for arm, (prior, terms) in STUDENTS.items():
        of_seeds = []
        for seed in range(settings.seed + 1, settings.seed + 1 + options.seeds):
            file = options.out / f"{arm.replace(' ', '_')}_{seed}.npy"
            if not file.exists():
                print(arm, flush=True)
                np.save(file, student_ranks(stages[prior], terms, seed))
            of_seeds.append(np.load(file))
        ranks[arm] = np.stack(of_seeds)
        found = table(stages[prior], ranks)
        found.to_csv(options.out / "table.csv", index=False)
        print(found.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
