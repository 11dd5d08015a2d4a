"""What the text of items adds to the best student without a language model, by how often the target was seen.

The student (with its prior) is trained alone, with the language model's item embeddings, with rows from the text of
items, with both, with a prior drawn towards texts, and with all three, at fixed settings and several seeds. An arm
whose name ends in "unseen negatives" learns against items that training never has for a target, as the student alone
does; the others do not. Everything is read off the validation split; the test split stays closed. Nothing but the
embeddings of the items' texts is asked of the language model: no teacher is trained.

    python -m benchmarks.rare_items --out FOLDER --seeds 2 -- dataset=recbole dataset.root=PATH dataset.name=ml-100k \
        'dataset.item_text="{title} ({year}), {genres}"' teacher.llm=PATH/all-MiniLM-L6-v2 baselines.trials=1

A training whose ranks lie in the folder already is not repeated.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from src.config.reading import read_settings
from src.core.logging import log_to
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import align
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.teachers import TITLES
from src.distill.terms.text_prior import TEXT_PRIOR
from src.distill.trainer_distill import train_distilled
from src.evaluation.segments import segments_frame
from src.pipeline.cache import StageCache
from src.pipeline.model_comparison import EvaluatedModel, closed_form_models
from src.pipeline.settings import ExperimentSettings
from src.pipeline.split_evaluation import evaluate_split, facts_of, repeated_share
from src.pipeline.stages import Stages
from src.student.models import require_network

STUDENT = "student"
OFF = {"lam": 0.0, "alpha": 0.0, "ed_weight": 0.0}
#: the terms of each arm; the weights were chosen on ML-100K's validation split, from four trainings
ARMS = {
    STUDENT: OFF,
    "item embeddings": {**OFF, "ed_weight": 0.5},
    "text of items": {**OFF, "text_weight": 0.3},
    "both": {**OFF, "ed_weight": 0.5, "text_weight": 0.3},
    "text prior": {**OFF, "text_prior": True},
    "all three": {**OFF, "ed_weight": 0.5, "text_weight": 0.3, "text_prior": True},
}
#: behind the name of an arm whose student learns against items that it never saw
AGAINST = ", unseen negatives"
NAMES = [name for arm in ARMS for name in ((arm, arm + AGAINST) if "text" in str(ARMS[arm]) else (arm,))]


def ranks_of(stages: Stages, arm: str, seed: int) -> NDArray[np.int64]:
    """Train an arm; the ranks of the validation targets."""
    settings = stages.settings
    outputs = stages.outputs_of([TITLES])
    teaching = align(outputs, stages.data.train, outputs.candidates.shape[1], stages.device)
    run = train_distilled(
        replace(require_network(settings.student), unseen_negatives=arm.endswith(AGAINST)),
        DistillSettings(**ARMS[arm.removesuffix(AGAINST)]), ActiveSettings(), settings.evaluation,
        stages.taught_data, teaching, seed,
    )  # fmt: skip
    print(f"{arm}, seed {seed}: epoch {run.fit.best_epoch} of {run.fit.epochs}, {run.fit.seconds:.0f} s", flush=True)
    return validation_ranks(stages, run.student.eval())


def validation_ranks(stages: Stages, model: object) -> NDArray[np.int64]:
    """The ranks of the validation targets under a model."""
    shown = TensorExamples.of(stages.data.validation, stages.device)
    repeated = repeated_share(stages.data.validation)
    found = evaluate_split(model, shown, stages.settings.evaluation, repeated)  # type: ignore[arg-type]
    return np.asarray(found.ranks.cpu().numpy())


def table(stages: Stages, ranks: dict[str, NDArray[np.int64]]) -> pd.DataFrame:
    """NDCG and the gain over the student alone, by how often the target was seen."""
    k = max(stages.settings.evaluation.ks)
    facts = facts_of(stages.data.validation, stages.data)
    frame = segments_frame(ranks, facts, STUDENT, k, stages.settings.seed)
    return frame[frame["by"].isin(["all", "target frequency"]) & (frame["examples"] > 0)]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the ranks and the table")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each arm")
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=NAMES, metavar="ARM", help="; ".join(NAMES))
    parser.add_argument("overrides", nargs="*", help="of the configuration, after --")
    options = parser.parse_args()
    log_to(None)
    settings, _ = read_settings("config", options.overrides, ExperimentSettings)
    stages = Stages(settings, StageCache(settings.runtime.cache))
    if any(ARMS[arm.removesuffix(AGAINST)].get("text_prior") for arm in options.arms):
        stages.trial_priors = (TEXT_PRIOR,)
    options.out.mkdir(parents=True, exist_ok=True)
    ranks: dict[str, NDArray[np.int64]] = {}
    for arm in dict.fromkeys([STUDENT, *options.arms]):
        of_seeds = []
        for seed in range(settings.seed + 1, settings.seed + 1 + options.seeds):
            file = options.out / f"{arm.replace(',', '').replace(' ', '_')}_{seed}.npy"
            if not file.exists():
                np.save(file, ranks_of(stages, arm, seed))
            of_seeds.append(np.load(file))
        ranks[arm] = np.stack(of_seeds)
        print(table(stages, ranks).to_string(index=False), flush=True)
    for model in closed_form_models(stages):
        if isinstance(model, EvaluatedModel):
            ranks[model.name] = validation_ranks(stages, model.load())[None]
    found = table(stages, ranks)
    found.to_csv(options.out / "table.csv", index=False)
    print(found.to_string(index=False))


if __name__ == "__main__":
    main()
