"""RecBole's side of `against_peers.py`, in an environment of its own: its SASRec, its loader, its trainer's epochs.

It is given the training rows as files of its own format (`benchmark_filename`), so that it learns from the very rows
that the others see.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data import create_dataset
from recbole.data.utils import get_dataloader
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed

from benchmarks.peer_trial import Score, Task, Trial

NAME = "peers"


def write_rows(folder: Path, task: Task, window: int) -> None:
    """The training rows as RecBole's sequential files, histories cut to the window."""
    rows = task.train
    lines = ["user_id:token\titem_id_list:token_seq\titem_id:token"]
    for row, history in enumerate(rows.histories(np.arange(len(rows)))):
        shown = " ".join(map(str, history[-window:]))
        lines.append(f"{rows.end[row] - rows.earlier[row]}\t{shown}\t{rows.target[row]}")
    (folder / NAME).mkdir()
    (folder / NAME / f"{NAME}.train.inter").write_text("\n".join(lines) + "\n")


def configuration(task: Task, folder: Path) -> Config:
    """The settings that are tried, on top of the library's own."""
    settings: dict[str, Any] = {
        "data_path": str(folder),
        "checkpoint_dir": str(folder / "saved"),
        "benchmark_filename": ["train"],
        "alias_of_item_id": ["item_id_list"],
        "load_col": {"inter": ["user_id", "item_id_list", "item_id"]},
        "train_neg_sample_args": None,
        "train_batch_size": 256,
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
        "reproducibility": False,
        "seed": task.seed,
    }
    return Config(model="SASRec", dataset=NAME, config_dict={**settings, **task.settings})


def scoring(model: SASRec, dataset: Any, num_items: int, window: int) -> Score:
    """Scores as its full ranking computes them; an item that it never saw stands below all others."""
    own = np.zeros(num_items, np.int64)
    for token, number in dataset.field2token_id["item_id"].items():
        if token != "[PAD]":
            own[int(token)] = number
    known = np.flatnonzero(own)

    def score(histories: list[np.ndarray]) -> torch.Tensor:
        sessions = [own[history] for history in histories]
        sessions = [session[session > 0][-window:] for session in sessions]
        # it pads on the right; a history without a known item is a row of padding
        table = np.zeros((len(sessions), window), np.int64)
        for row, session in enumerate(sessions):
            table[row, : len(session)] = session
        length = torch.tensor([max(len(session), 1) for session in sessions])
        found = model.full_sort_predict({"item_id_list": torch.from_numpy(table), "item_length": length})
        scores = torch.full((len(histories), num_items), float(found.min()) - 1.0)
        scores[:, known] = found[:, torch.from_numpy(own[known])]
        return scores

    return score


def main() -> None:
    """Train as asked, write curve and scores."""
    task, out = Task.of_arguments()
    window = int(task.settings["MAX_ITEM_LIST_LENGTH"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_rows(folder, task, window)
        config = configuration(task, folder)
        init_seed(task.seed, reproducibility=False)
        dataset = create_dataset(config)
        (train,) = dataset.build()
        model = SASRec(config, train)
        trainer = Trainer(config, model)
        loader = get_dataloader(config, "train")(config, train, None, shuffle=True)
        torch.set_num_threads(1)
        trial = Trial(task, model, scoring(model, dataset, task.num_items, window))
        epoch, ended = 0, False
        while not ended:
            trainer._train_epoch(loader, epoch, show_progress=False)
            epoch, ended = epoch + 1, trial.epoch_ended()
        trial.write(out)


if __name__ == "__main__":
    main()
