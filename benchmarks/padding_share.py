"""How much of a training batch is padding, with rows in random order and grouped by length; counts, no clock.

The tokens of every prompt of the training split are counted with the tokenizer that `tiny` trains on the dataset's own
titles (a real model's may be given by its folder or hub id: only its tokenizer is read). A batch is as wide as its
longest prompt. Padding share: 1 − real tokens / (rows × width), over all forward passes of three epochs.

    python -m benchmarks.padding_share
    python -m benchmarks.padding_share --batch 32 --micro-batch 8 --overrides dataset=movielens
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor
from transformers import AutoTokenizer

from benchmarks.machine_rate import table
from src.config.reading import read_settings
from src.core.data_utils import grouped_batches, shuffled_batches
from src.core.training import Batches
from src.data.tensor_examples import TensorExamples
from src.pipeline.cache import StageCache
from src.pipeline.settings import ExperimentSettings
from src.pipeline.stages import Stages
from src.teacher.backbone.tiny_llm import train_tokenizer
from src.teacher.prompts import Prompts
from src.teacher.settings import TINY

_EPOCHS = 3
_CPU = torch.device("cpu")


def token_counts(options: argparse.Namespace) -> Tensor:
    """``[N]``: tokens of each training example's prompt."""
    settings, _ = read_settings("config", options.overrides, ExperimentSettings)
    data = Stages(settings, StageCache(settings.runtime.cache, settings.runtime.reuse)).data
    if options.tokenizer == TINY:
        tokenizer = train_tokenizer(data.id_map, settings.teacher.tiny)
    else:
        tokenizer = AutoTokenizer.from_pretrained(options.tokenizer)
    train = TensorExamples.of(data.train, _CPU)
    return Prompts(data.id_map, tokenizer, settings.teacher.prompt).token_counts(train.history, train.length)


def padding_share(passes: Iterable[Tensor]) -> float:
    """Of forward passes over prompts of these token counts, one tensor a pass."""
    real = places = 0
    for counts in passes:
        real += int(counts.sum())
        places += len(counts) * int(counts.max())
    return 1 - real / places


def passes(counts: Tensor, batches: Batches, batch: int, micro_batch: int) -> Iterable[Tensor]:
    """The token counts of each forward pass of some epochs."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(_EPOCHS):
        for rows in batches(len(counts), batch, generator, _CPU):
            for part in rows.split(micro_batch or batch):
                yield counts[part]


def main() -> None:
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--micro-batch", type=int, default=8)
    parser.add_argument("--tokenizer", default=TINY, help="tiny, or a model's folder or hub id")
    parser.add_argument("--overrides", nargs="*", default=[], help="of the experiment, as on its command line")
    options = parser.parse_args()
    counts = token_counts(options)
    grouped = partial(grouped_batches, cost=counts)
    rows = [
        (
            name,
            f"{padding_share(passes(counts, batches, options.batch, 0)):.1%}",
            f"{padding_share(passes(counts, batches, options.batch, options.micro_batch)):.1%}",
        )
        for name, batches in (("random order", shuffled_batches), ("grouped by length", grouped))
    ]
    deviation = float(counts.double().std())
    print(f"{len(counts)} prompts of {float(counts.double().mean()):.1f} ± {deviation:.1f} tokens\n")
    print(table(["padding share", f"{options.batch} rows a pass", f"{options.micro_batch} rows a pass"], rows))


if __name__ == "__main__":
    main()
