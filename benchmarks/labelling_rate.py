"""Asking a trained teacher: rows a second, and how near that is to what the machine can do.

- item_ce: the export's own `item_head_labeller` (top N, distances, sequence embeddings);
- items: embeddings of the whole catalogue, adapters off;
- constrained: `beam_search` along the tree of titles, beams sharing their prompt or each with its own;
- grounded: `ground` (free answer, its embedding, distances to all items). With random weights no answer ends by itself:
  each is as long as the longest title, which real ones are not.

A LLaMA with random weights over a made-up catalogue. Utilisation is work (`model_flops`) over time over the measured
rate of a square matrix product. Where a model writes, its passes are timed one by one: prompts are bound by arithmetic
like `item_ce`, while every pass after them reads all weights and the key-value cache whatever it computes, so the bytes
of that, over the seconds of these passes alone, are set against the measured rate of a copy. What remains of the time
is the search itself and, for grounded, the embedding of answers and the distances. Work counts real tokens of prompts
and texts, and of decoding passes all places, those among them that a batch's fuller prompts leave unused in others.

    python -m benchmarks.labelling_rate                                        # a tiny shape, to see that it runs
    python -m benchmarks.labelling_rate --candidates 0                         # prompts with the history alone

Options for a GPU: `benchmarks.on_a_gpu`.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.machine_rate import machine_line, matrix_rate, memory_rate, seconds_of, table
from benchmarks.model_flops import LlamaShape, decoding_bytes, forward_flops, utilisation
from benchmarks.passes import Pass, Watch
from benchmarks.random_teacher import (
    Place,
    add_catalogue_arguments,
    add_shape_arguments,
    catalogue_of,
    item_teacher,
    shape_of,
    title_teacher,
)
from src.core.memory import is_out_of_memory
from src.data.examples import Examples
from src.data.tensor_examples import TensorExamples
from src.teacher.ilora_model import ILoRATeacher
from src.teacher.labelling.labels import item_head_labeller
from src.teacher.settings import ExportSettings
from src.teacher.title_lm.decoding.beam_search import beam_search
from src.teacher.title_lm.decoding.continuation import CacheMode
from src.teacher.title_lm.decoding.grounding import embed_texts, ground
from src.teacher.title_lm.decoding.title_tree import TitleTree
from src.teacher.title_lm.model import TitleTeacher

Answer = Callable[[Tensor, Tensor], object]
METHODS = ("item_ce", "items", "constrained", "grounded")


@dataclass(frozen=True)
class Part:
    """Passes of one kind: how many, their seconds and operations."""

    passes: int
    seconds: float
    flops: int


@dataclass(frozen=True)
class Asked:
    """``count`` rows (or items) in so many seconds; operations of all passes. A model that writes: its prompts' and its
    decoding passes, and the least bytes that the latter read.
    """

    name: str
    count: int
    flops: int
    seconds: float
    prompts: Part | None = None
    decoding: Part | None = None
    read: int = 0


def ask_item_head(teacher: ILoRATeacher, examples: Examples, shape: LlamaShape, options: argparse.Namespace) -> Asked:
    """The export of `item_ce`."""
    labeller = item_head_labeller(teacher, ExportSettings(top_n=options.top_n, batch_size=options.batch))
    labeller.label(examples.take(np.arange(min(2 * options.batch, len(examples)))))
    seconds = seconds_of(lambda: labeller.label(examples), teacher.device)
    shown = TensorExamples.of(examples, teacher.device)
    lengths = teacher.cost(shown.history, shown.length).tolist()
    return Asked("item_ce export", len(examples), forward_flops(shape, lengths), seconds)


def ask_item_embeddings(teacher: ILoRATeacher, shape: LlamaShape, options: argparse.Namespace) -> Asked:
    """Every title through the model."""
    teacher.embed_items(options.batch)
    seconds = seconds_of(lambda: teacher.embed_items(options.batch), teacher.device)
    every = torch.arange(teacher.num_items, device=teacher.device)
    lengths = teacher.prompts.titles(every).attention_mask.sum(dim=1).tolist()
    return Asked("item embeddings", len(lengths), forward_flops(shape, lengths), seconds)


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
    answer: Answer,
) -> Asked:
    """``answer(history, length)`` for every batch; the first one once more, before the clock starts."""
    batches = like_lengths(teacher, TensorExamples.of(examples, teacher.device), options.rank_batch)
    answer(*batches[0])
    watch = Watch(teacher.causal_lm)
    with watch.watching():
        seconds = seconds_of(lambda: [answer(*batch) for batch in batches], teacher.device)
    shown = TensorExamples.of(examples, teacher.device)
    lengths = teacher.prompts.token_counts(teacher.question(shown.history, shown.length)).tolist()
    prompts = part(watch.of("prompt"), forward_flops(shape, lengths))
    written = watch.of("decoding")
    decoding = part(written, 2 * shape.multiplied * sum(one.places for one in written))
    texts = [length for one in watch.of("text") if one.mask is not None for length in one.mask.sum(dim=1).tolist()]
    flops = prompts.flops + decoding.flops + forward_flops(shape, texts)
    each = teacher.causal_lm.dtype.itemsize
    read = decoding_bytes(shape, len(written), sum(one.cached for one in written), each)
    return Asked(name, len(examples), flops, seconds, prompts, decoding, read)


def part(passes: Sequence[Pass], flops: int) -> Part:
    """Together."""
    return Part(len(passes), sum(one.seconds for one in passes), flops)


def constrained_answer(teacher: TitleTeacher, cache_mode: CacheMode, options: argparse.Namespace) -> Answer:
    """Beam search along the titles."""
    tree = TitleTree.of(teacher.title_token_ids(), teacher.prompts.end_id).to(teacher.device)

    @torch.inference_mode()
    def answer(history: Tensor, length: Tensor) -> object:
        embedded, mask = teacher.prompt_embeddings(history, length)
        gate = teacher.gate_for(history, length)
        return beam_search(teacher.llm, embedded, mask, tree, options.top_n, options.beams, gate, cache_mode=cache_mode)

    return answer


def grounded_answer(teacher: TitleTeacher, options: argparse.Namespace) -> Answer:
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


def within_memory(name: str, asked: Callable[[], Asked], place: Place) -> Asked | str:
    """As ``asked`` says; the name alone when the device's memory is not enough."""
    try:
        return asked()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # outside the handler: the exception would keep the failed passes' tensors alive
    gc.collect()
    if place.device.type == "cuda":
        torch.cuda.empty_cache()
    return name


def with_item_head(options: argparse.Namespace, place: Place, examples: Examples) -> Iterator[Asked | str]:
    """What the `item_ce` teacher is asked."""
    wanted = [method for method in options.methods if method in ("item_ce", "items")]
    if not wanted:
        return
    teacher, shape = item_teacher(options, place).eval(), shape_of(options)
    if "item_ce" in wanted:
        yield within_memory("item_ce export", lambda: ask_item_head(teacher, examples, shape, options), place)
    if "items" in wanted:
        yield within_memory("item embeddings", lambda: ask_item_embeddings(teacher, shape, options), place)


def with_titles(options: argparse.Namespace, place: Place, examples: Examples) -> Iterator[Asked | str]:
    """What the `title_lm` teacher is asked."""
    wanted = [method for method in options.methods if method in ("constrained", "grounded")]
    if not wanted:
        return
    teacher, shape = title_teacher(options, place), shape_of(options)

    def ask(name: str, make: Callable[[], Answer]) -> Asked | str:
        return within_memory(name, lambda: ask_by_decoding(name, teacher, examples, shape, options, make()), place)

    for cache_mode in options.holds if "constrained" in wanted else ():
        yield ask(f"constrained, {cache_mode} prompts", partial(constrained_answer, teacher, cache_mode, options))
    if "grounded" in wanted:
        yield ask("grounded", partial(grounded_answer, teacher, options))


def cells(asked: Asked | str, rate: float, bandwidth: float) -> list[str]:
    """A row of the table."""
    if isinstance(asked, str):
        return [asked, *["out of memory"] * 7]
    whole = [
        asked.name,
        f"{asked.count / asked.seconds:,.1f}",
        f"{utilisation(asked.flops, asked.seconds, rate):.1%}",
    ]
    prompts, decoding = asked.prompts, asked.decoding
    if prompts is None or decoding is None:
        return [*whole, *["-"] * 5]
    return [
        *whole,
        f"{prompts.seconds / asked.seconds:.0%}",
        f"{utilisation(prompts.flops, prompts.seconds, rate):.1%}",
        f"{decoding.seconds / asked.seconds:.0%}",
        f"{decoding.passes}",
        f"{utilisation(asked.read, decoding.seconds, bandwidth):.1%}" if decoding.passes else "-",
    ]


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """From the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_shape_arguments(parser, shape="tiny")
    add_catalogue_arguments(parser)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=32, help="prompts or titles at once (item_ce, items)")
    parser.add_argument("--rows", type=int, default=256, help="rows of item_ce")
    parser.add_argument("--rank-batch", type=int, default=8, help="prompts at once (constrained, grounded)")
    parser.add_argument("--rank-rows", type=int, default=32, help="rows of these two")
    parser.add_argument("--top-n", type=int, default=ExportSettings().top_n)
    beams = ExportSettings().beams
    parser.add_argument("--beams", type=int, default=beams, help="unfinished titles followed at once")
    text = "how beams keep their prompt: once, or a copy each"
    parser.add_argument("--holds", nargs="+", choices=["shared", "expanded"], default=["shared", "expanded"], help=text)
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Ask, print; each line at once, so that a run that is ended leaves its figures."""
    options = arguments(words)
    place, catalogue = Place.of(options), catalogue_of(options)
    rate, bandwidth = matrix_rate(place.dtype, place.device), memory_rate(place.device)
    print(f"{machine_line(place.device)}\n{shape_of(options)}\n{options}")
    print(
        f"matrix products in {place.dtype}: {rate / 1e12:.3f} TFLOP/s; copies: {bandwidth / 1e9:.1f} GB/s\n", flush=True
    )
    found = []
    for ask, rows in ((with_item_head, options.rows), (with_titles, options.rank_rows)):
        for asked in ask(options, place, catalogue.examples(rows)):
            found.append(asked)
            print(" | ".join(cells(asked, rate, bandwidth)), flush=True)
        gc.collect()
    rate = max(rate, matrix_rate(place.dtype, place.device))
    bandwidth = max(bandwidth, memory_rate(place.device))
    print(f"\nmatrix products in {place.dtype}: {rate / 1e12:.3f} TFLOP/s; copies: {bandwidth / 1e9:.1f} GB/s\n")
    parts = ["prompts: of the time", "utilisation there", "decoding: of the time", "passes", "of bandwidth there"]
    head = ["asked", "rows or items/s", "utilisation", *parts]
    print(table(head, [cells(asked, rate, bandwidth) for asked in found]))


if __name__ == "__main__":
    main()
