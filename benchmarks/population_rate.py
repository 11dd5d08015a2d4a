"""Epochs a second of students that train as one batched model, against as many that train one after the other."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.machine_rate import machine_line, own_seconds_of, seconds_of
from src.core.loop_settings import LoopSettings
from src.core.population import Member, Population
from src.core.seed import reproducible
from src.data.examples import Examples
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import TeachingRows
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import prepare_distilled
from src.student.datamodule import StudentData
from src.student.losses import propensity
from src.student.models import require_network, student_settings
from src.student.settings import EvaluationSettings

STEPS_OF_AN_EPOCH, CANDIDATES, WINDOW = 100, 10, 10


def random_data(num_items: int, batch: int, device: torch.device) -> tuple[StudentData, TeachingRows]:
    """An epoch of `STEPS_OF_AN_EPOCH` batches with a label for every row; what is learned does not matter here."""
    random, rows = np.random.default_rng(0), batch * STEPS_OF_AN_EPOCH

    def examples(count: int) -> TensorExamples:
        history = random.integers(0, num_items, (count, WINDOW))
        ids, length = np.arange(count), np.full(count, WINDOW)
        target = random.integers(0, num_items, count)
        return TensorExamples.of(Examples.of_rows(ids, ids, history, length, target, ids.astype(np.float64)), device)

    counts = torch.ones(num_items, dtype=torch.int64, device=device)
    train = examples(rows)
    data = StudentData(train, examples(batch), num_items, WINDOW, propensity(counts).float(), counts)
    candidates = torch.tensor(random.integers(0, num_items, (rows + 1, CANDIDATES)), device=device)
    distances = torch.rand(rows + 1, CANDIDATES, device=device)
    item_embedding = torch.randn(num_items, 32, device=device)
    slot = torch.arange(rows, device=device)
    return data, TeachingRows(slot, candidates, distances, torch.zeros(rows + 1, 0), item_embedding)


def members_of(count: int, width: int, batch: int, data: StudentData, teaching: TeachingRows) -> list[Member]:
    """The main job's trials: the default student with a ranking term, DRO and item embeddings."""
    members, loop = [], LoopSettings(ema=0.998, batch_size=batch)
    for place in range(count):
        share = (place + 1) / (count + 1)
        settings = student_settings(
            "transformer", width=width, window=WINDOW, prior="none", dropout=0.3 * share, loop=loop
        )
        distill = DistillSettings(lam=share, alpha=share / 2, ed_weight=share, candidate_topk=CANDIDATES)
        _, fit = prepare_distilled(
            require_network(settings), distill, ActiveSettings(), EvaluationSettings(), data, teaching, seed=place
        )
        members.append(Member(fit))
        members[-1].advance()
    return members


def train(population: Population, members: Sequence[Member], steps: int) -> None:
    """Some steps of every member."""
    for _ in range(steps):
        for member, loss in zip(members, population.step(members), strict=True):
            member.advance(loss)


def rates(
    num_items: int, width: int, batch: int, threads: int, counts: Sequence[int], rounds: int, device: torch.device
) -> tuple[float, list[float]]:
    """Epochs a second of lone trials, and how many times as fast all members of populations of ``counts`` are together.

    On a CPU with one thread a second is one of processor time. Rounds take lone trials and every population in turns,
    and what is compared is of one round, so that other programs slow down both.
    """
    data, teaching = random_data(num_items, batch, device)
    timed = own_seconds_of if threads == 1 else seconds_of
    kinds: list[tuple[Population, list[Member]]] = []
    with reproducible(threads):
        for count in (1, *counts):
            kinds.append((Population(), members_of(count, width, batch, data, teaching)))
        found: list[list[float]] = [[] for _ in kinds]
        for number in range(rounds + 1):
            for place, (population, members) in enumerate(kinds):
                steps = max(1, 16 // len(members)) if number else 1  # the first round warms up
                seconds = timed(lambda p=population, m=members, s=steps: train(p, m, s), device)
                found[place].append(steps * len(members) / seconds / STEPS_OF_AN_EPOCH)
        for population, _ in kinds:
            assert not population.in_turns, population.in_turns
    alone, *together = [rate[1:] for rate in found]
    ratios = [statistics.median(ours / lone for ours, lone in zip(rate, alone, strict=True)) for rate in together]
    return statistics.median(alone), ratios


def measured(asked: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A line of the table, with what was asked and on what machine."""
    lone, ratios = rates(**asked, device=device)
    return {"asked": asked, "machine": machine_line(device), "lone": lone, "ratios": ratios}


def line_of(found: Mapping[str, Any]) -> str:
    """As Markdown."""
    asked, cells = found["asked"], "".join(f" {ratio:.2f} |" for ratio in found["ratios"])
    where = [asked[name] for name in ("batch", "num_items", "width", "threads")]
    return f"| {' | '.join(map(str, where))} | {found['lone']:.2f} |{cells}"


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line's words."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[410, 1700, 10_000], help="V")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 64], help="D")
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 256], help="B, rows of a step")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--population", type=int, nargs="+", default=[1, 4, 16], help="P")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="file of finished lines: what it holds is not measured again")
    return parser.parse_args(words)


def main(words: Sequence[str] | None = None) -> None:
    """Print the table."""
    asked = arguments(words)
    device = torch.device(asked.device)
    done: list[dict[str, Any]] = []
    if asked.out is not None and asked.out.is_file():
        done = [json.loads(line) for line in asked.out.read_text(encoding="utf-8").splitlines()]
    print(f"{machine_line(device)}, {asked.rounds} rounds\n")
    print("| B | V | D | threads | lone trials |" + "".join(f" P = {count} |" for count in asked.population))
    print("|---|---|---|---|---|" + "---|" * len(asked.population))
    for threads, batch, num_items, width in product(asked.threads, asked.batch, asked.items, asked.widths):
        wanted = {"num_items": num_items, "width": width, "batch": batch, "threads": threads}
        wanted |= {"counts": asked.population, "rounds": asked.rounds}
        found = next((line for line in done if line["asked"] == wanted), None)
        if found is None:
            found = measured(wanted, device)
            if asked.out is not None:
                with asked.out.open("a", encoding="utf-8") as file:
                    file.write(f"{json.dumps(found)}\n")
        print(line_of(found), flush=True)


if __name__ == "__main__":
    main()
