"""Asking a trained teacher: rows a second, and how near that is to what the machine can do.

- item_ce: the export's own `item_head_labeller` (top N, distances, sequence embeddings);
- items: embeddings of the whole catalogue, adapters off;
- constrained: `beam_search` along the tree of titles, beams sharing their prompt or each with its own;
- grounded: `ground` (free answer, its embedding, distances to all items). With random weights no answer ends by itself:
  each is as long as the longest title, which real ones are not.

A LLaMA with random weights over a made-up catalogue. Utilisation is the work of real tokens (`model_flops`) against
the measured rate of a square matrix product. Decoding is bound by bandwidth: every pass after the prompt's reads all
weights whatever the batch, so for the last two the bytes of that are set against the measured rate of a copy.

    python -m benchmarks.labelling_rate                                        # a tiny shape, to see that it runs
    python -m benchmarks.labelling_rate --shape llama-2-7b --batch 64 --rows 2048 --rank-rows 128 --adapters base
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.machine_rate import machine_line, matrix_rate, memory_rate, seconds_of, table
from benchmarks.model_flops import LlamaShape, decoding_bytes, forward_flops, utilisation
from benchmarks.random_teacher import (
    Place,
    add_catalogue_arguments,
    add_shape_arguments,
    catalogue_of,
    item_teacher,
    shape_of,
    title_teacher,
)
from src.data.examples import Examples
from src.student.datamodule import TensorExamples
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.labelling import item_head_labeller
from src.teacher.ranking.constrained import beam_search
from src.teacher.ranking.continuation import Beams
from src.teacher.ranking.grounded import embed_texts, ground
from src.teacher.ranking.title_tree import TitleTree
from src.teacher.settings import ExportSettings
from src.teacher.title.model import TitleTeacher

METHODS = ("item_ce", "items", "constrained", "grounded")


@dataclass(frozen=True)
class Asked:
    """``count`` rows (or items) in so many seconds; operations of real tokens; passes that only go on from a prompt."""

    name: str
    count: int
    tokens: int
    flops: int
    seconds: float
    decoding_passes: int = 0


@dataclass
class Passes:
    """What went through a causal model beside prompts: passes that continue one, and the tokens in them."""

    passes: int = 0
    tokens: int = 0

    @contextmanager
    def counted(self, model: nn.Module) -> Iterator[None]:
        """Count for the block."""
        handle = model.register_forward_pre_hook(self._see, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: nn.Module, inputs: Any, named: dict[str, Any]) -> None:
        if named.get("past_key_values") is not None:
            self.passes += 1
            self.tokens += named["input_ids"].numel()


def ask_item_head(teacher: ILoRATeacher, examples: Examples, shape: LlamaShape, options: argparse.Namespace) -> Asked:
    """The export of `item_ce`."""
    labeller = item_head_labeller(teacher, ExportSettings(top_n=options.top_n, batch_size=options.batch))
    labeller.label(examples.take(np.arange(min(2 * options.batch, len(examples)))))
    seconds = seconds_of(lambda: labeller.label(examples), teacher.device)
    shown = TensorExamples.of(examples, teacher.device)
    lengths = teacher.cost(shown.history, shown.length).tolist()
    return Asked("item_ce export", len(examples), sum(lengths), forward_flops(shape, lengths), seconds)


def ask_item_embeddings(teacher: ILoRATeacher, shape: LlamaShape, options: argparse.Namespace) -> Asked:
    """Every title through the model."""
    teacher.embed_items(options.batch)
    seconds = seconds_of(lambda: teacher.embed_items(options.batch), teacher.device)
    every = torch.arange(teacher.num_items, device=teacher.device)
    lengths = teacher.prompts.titles(every).attention_mask.sum(dim=1).tolist()
    return Asked("item embeddings", len(lengths), sum(lengths), forward_flops(shape, lengths), seconds)


def like_lengths(teacher: TitleTeacher, shown: TensorExamples, size: int) -> list[tuple[Tensor, Tensor]]:
    """Histories and lengths in batches of like cost."""
    order = teacher.cost(shown.history, shown.length).argsort(stable=True)
    return [(shown.history[rows], shown.length[rows]) for rows in order.split(size)]


def ask_by_decoding(
    name: str,
    teacher: TitleTeacher,
    examples: Examples,
    shape: LlamaShape,
    options: argparse.Namespace,
    answer: Callable[[Tensor, Tensor], object],
) -> Asked:
    """``answer(history, length)`` for every batch; the first one once more, before the clock starts."""
    batches = like_lengths(teacher, TensorExamples.of(examples, teacher.device), options.rank_batch)
    answer(*batches[0])
    passes = Passes()
    with passes.counted(teacher.causal_lm):
        seconds = seconds_of(lambda: [answer(*batch) for batch in batches], teacher.device)
    shown = TensorExamples.of(examples, teacher.device)
    lengths = teacher.prompts.token_counts(teacher.question(shown.history, shown.length)).tolist()
    flops = forward_flops(shape, lengths) + 2 * shape.multiplied * passes.tokens
    return Asked(name, len(examples), sum(lengths) + passes.tokens, flops, seconds, passes.passes)


def constrained_answer(
    teacher: TitleTeacher, hold: Beams, options: argparse.Namespace
) -> Callable[[Tensor, Tensor], object]:
    """Beam search along the titles."""
    tree = TitleTree.of(teacher.title_token_ids(), teacher.prompts.end_id).to(teacher.device)

    @torch.inference_mode()
    def answer(history: Tensor, length: Tensor) -> object:
        embedded, mask = teacher.prompt_embeddings(history, length)
        gate = teacher.gate_for(history, length)
        return beam_search(teacher.llm, embedded, mask, tree, options.top_n, options.beams, gate, hold=hold)

    return answer


def grounded_answer(teacher: TitleTeacher, options: argparse.Namespace) -> Callable[[Tensor, Tensor], object]:
    """A free answer and its nearest titles."""
    prompts, size = teacher.prompts, options.rank_batch
    items = embed_texts(teacher.llm, prompts.tokenizer, prompts.texts, options.batch)

    @torch.inference_mode()
    def answer(history: Tensor, length: Tensor) -> object:
        embedded, mask = teacher.prompt_embeddings(history, length)
        gate = teacher.gate_for(history, length)
        longest, end = prompts.longest_answer, prompts.end_id
        return ground(teacher.llm, prompts.tokenizer, embedded, mask, items, longest, end, gate, batch_size=size)

    return answer


def with_item_head(options: argparse.Namespace, place: Place, examples: Examples) -> Iterator[Asked]:
    """What the `item_ce` teacher is asked."""
    wanted = [method for method in options.methods if method in ("item_ce", "items")]
    if not wanted:
        return
    teacher, shape = item_teacher(options, place).eval(), shape_of(options)
    if "item_ce" in wanted:
        yield ask_item_head(teacher, examples, shape, options)
    if "items" in wanted:
        yield ask_item_embeddings(teacher, shape, options)


def with_titles(options: argparse.Namespace, place: Place, examples: Examples) -> Iterator[Asked]:
    """What the `title_lm` teacher is asked."""
    wanted = [method for method in options.methods if method in ("constrained", "grounded")]
    if not wanted:
        return
    teacher, shape = title_teacher(options, place), shape_of(options)
    holds: tuple[Beams, ...] = ("shared", "expanded")
    for hold in holds if "constrained" in wanted else ():
        answer = constrained_answer(teacher, hold, options)
        yield ask_by_decoding(f"constrained, {hold} prompts", teacher, examples, shape, options, answer)
    if "grounded" in wanted:
        answer = grounded_answer(teacher, options)
        yield ask_by_decoding("grounded", teacher, examples, shape, options, answer)


def cells(asked: Asked, shape: LlamaShape, dtype: torch.dtype, rate: float, bandwidth: float) -> list[str]:
    """A row of the table."""
    read = decoding_bytes(shape, asked.decoding_passes, dtype.itemsize)
    return [
        asked.name,
        f"{asked.count / asked.seconds:,.1f}",
        f"{asked.tokens / asked.seconds:,.0f}",
        f"{utilisation(asked.flops, asked.seconds, rate):.1%}",
        f"{asked.decoding_passes}",
        f"{utilisation(read, asked.seconds, bandwidth):.1%}" if asked.decoding_passes else "0 %",
    ]


def arguments() -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="tiny")
    add_catalogue_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=32, help="prompts or titles at once (item_ce, items)")
    parser.add_argument("--rows", type=int, default=256, help="rows of item_ce")
    parser.add_argument("--rank-batch", type=int, default=8, help="prompts at once (constrained, grounded)")
    parser.add_argument("--rank-rows", type=int, default=32, help="rows of these two")
    parser.add_argument("--top-n", type=int, default=20)
    parser.add_argument("--beams", type=int, default=20)
    return parser.parse_args()


def main() -> None:
    """Ask, print."""
    options = arguments()
    place, catalogue, shape = Place.of(options), catalogue_of(options), shape_of(options)
    rate, bandwidth = matrix_rate(place.dtype, place.device), memory_rate(place.device)
    found = list(with_item_head(options, place, catalogue.examples(options.rows)))
    gc.collect()
    found += with_titles(options, place, catalogue.examples(options.rank_rows))
    rate = max(rate, matrix_rate(place.dtype, place.device))
    print(f"\n{machine_line(place.device)}\n{shape}\n{options}")
    print(f"matrix products in {place.dtype}: {rate / 1e12:.3f} TFLOP/s; copies: {bandwidth / 1e9:.1f} GB/s\n")
    head = ["asked", "rows or items/s", "tokens/s", "utilisation", "decoding passes", "of bandwidth"]
    print(table(head, [cells(asked, shape, place.dtype, rate, bandwidth) for asked in found]))


if __name__ == "__main__":
    main()
