"""RecBole's side of `student_vs_recbole.py`; runs in RecBole's own environment and prints one JSON line a round.

A round is one epoch of RecBole's own trainer over its own data loader. It calls the trainer's epoch and not `fit`,
which would add its logging and bookkeeping: the clock sees training alone, as it does on our side.
"""

import json
import sys
import tempfile
import time

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.model.sequential_recommender import SASRec
from recbole.trainer import Trainer
from recbole.utils import init_seed


def main() -> None:
    """Arguments: dataset root (a folder that holds ``<name>/<name>.inter``), name, threads; a round a line of stdin."""
    root, name, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    config = Config(
        model="SASRec",
        dataset=name,
        config_dict={
            "data_path": root,
            "checkpoint_dir": tempfile.mkdtemp(),
            "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
            "MAX_ITEM_LIST_LENGTH": 10,
            "hidden_size": 64,
            "inner_size": 64,
            "n_layers": 1,
            "n_heads": 1,
            "hidden_dropout_prob": 0.1,
            "attn_dropout_prob": 0.1,
            # RecBole's SASRec offers BPR (one sampled negative a row) or CE; BPR is the one with one negative
            "loss_type": "BPR",
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
            "train_batch_size": 256,
            "learning_rate": 1e-3,
            "eval_args": {"split": {"RS": [0.8, 0.1, 0.1]}, "order": "TO", "group_by": "user", "mode": "full"},
            "use_gpu": False,
            "show_progress": False,
            "state": "ERROR",
            "reproducibility": False,
        },
    )
    init_seed(42, reproducibility=False)
    dataset = create_dataset(config)
    train, _, _ = data_preparation(config, dataset)
    trainer = Trainer(config, SASRec(config, train.dataset))
    torch.set_num_threads(threads)
    for epoch, _ in enumerate(sys.stdin):
        start = time.perf_counter()
        trainer._train_epoch(train, epoch, show_progress=False)
        seconds = time.perf_counter() - start
        sys.stdout.write(json.dumps({"rows": len(train.dataset), "seconds": seconds}) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
