"""What a distillation step costs beside a plain step, and that its catalogue-wide work is done once.

Random data of ML-100K's shape (V = 1,682 items, batch 256, window 10), one thread, rounds in turn:

1. a step of the student alone (CE) against the full distillation step (alpha, lam, ed_weight > 0);
2. the candidates' DRO for K = 1, 5, 10, 20: `dro_terms` + `dro_at` against the formula written out for each candidate
   (golden README §1c, a logarithm of a catalogue-wide sum a candidate), and the shared sum minus the candidate's part;
3. the float32 error of the three against float64 where a few logits dominate and the candidate's is the largest.

    python -m benchmarks.distillation_step
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from src.core.seed import torch_generator
from src.core.training import train_step
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import TeachingRows
from src.distill.selection_policy import build_policy
from src.distill.settings import ActiveSettings, DistillSettings
from src.distill.trainer_distill import DistillObjective, build_taught
from src.student.datamodule import StudentData
from src.student.losses import dro_at, dro_terms, propensity
from src.student.models import student_settings
from src.student.objectives import negative_sampler
from src.student.trainer_baseline import new_student

ITEMS, BATCH, WINDOW, LLM_WIDTH, ROWS = 1682, 256, 10, 384, 4096


def made_up_data() -> tuple[StudentData, TeachingRows]:
    """Random histories, every row labelled with 20 candidates."""
    draw = torch.Generator().manual_seed(0)
    history = torch.randint(ITEMS, (ROWS, WINDOW), generator=draw)
    split = TensorExamples.of_rows(
        history, torch.full((ROWS,), WINDOW), torch.randint(ITEMS, (ROWS,), generator=draw), history[:, 0]
    )
    counts = torch.randint(500, (ITEMS,), generator=draw)
    data = StudentData(split, split, ITEMS, WINDOW, propensity(counts).float(), counts)
    candidates = torch.rand(ROWS + 1, ITEMS, generator=draw).topk(20, dim=1).indices
    distances = torch.rand(ROWS + 1, 20, generator=draw).sort(dim=1).values * 5
    embedding = torch.randn(ITEMS, LLM_WIDTH, generator=draw)
    return data, TeachingRows(torch.arange(ROWS), candidates, distances, torch.zeros(ROWS + 1, 0), embedding)


def stepper(settings: DistillSettings) -> Callable[[], None]:
    """A function that takes one optimiser step."""
    data, teaching = made_up_data()
    alone = student_settings("sasrec")
    narrowed = TeachingRows(
        teaching.slot,
        teaching.candidates[:, : settings.candidate_topk],
        teaching.distances[:, : settings.candidate_topk],
        teaching.sequence_embedding,
        teaching.item_embedding,
    )
    model = build_taught(new_student(alone, data, 0), settings, narrowed, data, 0)
    draw = negative_sampler(data, 1, torch_generator(0, "negatives"))
    objective = DistillObjective(model, data, narrowed, alone, settings, build_policy(ActiveSettings()), draw)
    optimiser = torch.optim.Adam(model.parameters(), 1e-3, fused=True)
    order = torch_generator(0, "order")
    return lambda: train_step(objective, optimiser, torch.randperm(ROWS, generator=order)[:BATCH]) and None


def each_candidate(logits: Tensor, p: Tensor, beta: float, items: Tensor) -> Tensor:
    """The formula as it stands: a catalogue-wide sum for every candidate."""
    columns = []
    for place in range(items.shape[1]):
        item = items[:, place : place + 1]
        exponent = p * logits.square() / beta
        corrected = p[item] * (logits.gather(1, item) - 1).square() / beta
        columns.append(exponent.scatter(1, item, corrected).logsumexp(dim=1))
    return torch.stack(columns, dim=1)


def subtracting(logits: Tensor, p: Tensor, beta: float, items: Tensor) -> Tensor:
    """The shared sum minus the candidate's part, relative to the largest exponent."""
    exponent = p * logits.square() / beta
    largest = exponent.max(dim=1, keepdim=True).values
    total = (exponent - largest).exp().sum(dim=1, keepdim=True)
    corrected = p[items] * (logits.gather(1, items) - 1).square() / beta
    return (total - (exponent.gather(1, items) - largest).exp() + (corrected - largest).exp()).log() + largest


def ours(logits: Tensor, p: Tensor, beta: float, items: Tensor) -> Tensor:
    """What the losses use."""
    return dro_at(dro_terms(logits, p, beta), items)


def in_turn(actions: dict[str, Callable[[], object]], rounds: int = 7, repeats: int = 10) -> dict[str, float]:
    """Median milliseconds of each action, measured in turn so that the machine's load meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(rounds + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            for _ in range(repeats):
                action()
            seconds[name].append((time.perf_counter() - start) / repeats)
    return {name: 1e3 * statistics.median(values[1:]) for name, values in seconds.items()}


def show_steps() -> None:
    """Table 1."""
    plain = DistillSettings(lam=0, alpha=0, ed_weight=0)
    actions = {"student alone (CE)": stepper(plain)}
    actions |= {f"full distillation, K = {k}": stepper(DistillSettings(candidate_topk=k)) for k in (1, 5, 10, 20)}
    measured = in_turn(actions)
    print("| step | ms | of the plain step |\n|---|---|---|")
    for name, value in measured.items():
        print(f"| {name} | {value:.2f} | {value / measured['student alone (CE)']:.2f} |")


def show_dro() -> None:
    """Table 2."""
    draw = torch.Generator().manual_seed(1)
    logits = (torch.randn(BATCH, ITEMS, generator=draw) * 2).requires_grad_()
    p = propensity(torch.randint(500, (ITEMS,), generator=draw)).float()
    print("\n| K | ours, ms | each candidate, ms | ratio |\n|---|---|---|---|")
    for k in (1, 5, 10, 20):
        items = torch.rand(BATCH, ITEMS, generator=draw).topk(k, dim=1).indices

        def backward(form: Callable[..., Tensor], items: Tensor = items) -> None:
            logits.grad = None
            form(logits, p, 1.0, items).mean().backward()

        measured = in_turn(
            {"ours": lambda: backward(ours), "each": lambda: backward(each_candidate)}, rounds=5, repeats=3
        )
        print(f"| {k} | {measured['ours']:.2f} | {measured['each']:.2f} | {measured['each'] / measured['ours']:.1f} |")


def show_errors() -> None:
    """Table 3."""
    draw = torch.Generator().manual_seed(2)
    p = propensity(torch.randint(500, (ITEMS,), generator=draw)).float()
    print("\n| largest logit | ours | each candidate | subtracting |\n|---|---|---|---|")
    for top in (5.0, 13.0, 30.0):
        logits = torch.randn(BATCH, ITEMS, generator=draw)
        # the rest of the sum is as large as what the candidate's own part leaves: here a difference loses its digits
        logits[:, 0], logits[:, 1:4] = top, top - 1
        items = torch.zeros(BATCH, 1, dtype=torch.int64)
        want = each_candidate(logits.double(), p.double(), 1.0, items)
        errors = [(form(logits, p, 1.0, items) - want).abs().max() for form in (ours, each_candidate, subtracting)]
        print(f"| {top:g} | " + " | ".join(f"{float(error):.1e}" for error in errors) + " |")


def main() -> None:
    """Print the three tables."""
    torch.set_num_threads(1)
    show_steps()
    show_dro()
    show_errors()


if __name__ == "__main__":
    main()
