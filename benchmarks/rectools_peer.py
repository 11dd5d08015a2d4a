"""RecTools' side of `against_peers.py`, in an environment of its own: its SASRec with its own loader and trainer.

It learns from whole user sequences, at all positions, as it always does; `session_max_len` decides how much of a long
one it sees.
"""

from __future__ import annotations

import logging
import warnings

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from rectools.dataset import Dataset
from rectools.models import SASRecModel

from benchmarks.peer_trial import Score, Task, Trial, left_padded


class Judged(Callback):
    """Ends each epoch with the benchmark's own validation."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.trial: Trial | None = None

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Judge, and stop where validation no longer rises."""
        if self.trial is not None and (trainer.current_epoch + 1) % self.every == 0:
            trainer.should_stop = self.trial.epoch_ended()


def interactions(task: Task) -> pd.DataFrame:
    """The training sequences as RecTools reads them; the clock counts a user's items."""
    sequences = task.train.sequences()
    place = np.concatenate([np.arange(len(sequence)) for sequence in sequences])
    return pd.DataFrame(
        {
            "user_id": np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences]),
            "item_id": np.concatenate(sequences),
            "weight": 1.0,
            "datetime": pd.Timestamp("2000-01-01") + pd.to_timedelta(place, unit="s"),
        }
    )


def scoring(model: SASRecModel, num_items: int) -> Score:
    """Scores as its `recommend` computes them; an item that it never saw stands below all others."""
    known = np.asarray(model.data_preparator.item_id_map.external_ids[model.data_preparator.n_item_extra_tokens :], int)
    own = np.full(num_items, -1)
    own[known] = np.arange(len(known)) + model.data_preparator.n_item_extra_tokens

    def score(histories: list[np.ndarray]) -> torch.Tensor:
        network, width = model.torch_model, model.data_preparator.session_max_len
        sessions = [own[history] for history in histories]
        table = left_padded([session[session >= 0] for session in sessions], width, 0)
        items = network.item_model.get_all_embeddings()
        users = network.similarity_module.session_tower_forward(network.encode_sessions({"x": table}, items)[:, -1])
        found = users @ network.similarity_module.item_tower_forward(items).T
        scores = torch.full((len(histories), num_items), float(found.min()) - 1.0)
        scores[:, known] = found[:, torch.from_numpy(own[known])]
        return scores

    return score


def main() -> None:
    """Train as asked, write curve and scores."""
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    task, out = Task.of_arguments()
    settings = dict(task.settings)
    judged = Judged(settings.pop("judge_every", 1))
    seed_everything(task.seed)

    def trainer() -> Trainer:
        return Trainer(
            max_epochs=10**6, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, callbacks=[judged],
        )  # fmt: skip

    model = SASRecModel(get_trainer_func=trainer, **settings)
    data = Dataset.construct(interactions(task))
    model._build_model_from_dataset(data)
    # `_fit` copies its trainer, and with it the callback: the trainer is used directly
    judged.trial = Trial(task, model.torch_model, scoring(model, task.num_items))
    trainer().fit(model.lightning_model, model.data_preparator.get_dataloader_train())
    judged.trial.write(out)


if __name__ == "__main__":
    main()
