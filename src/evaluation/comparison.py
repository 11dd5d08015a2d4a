"""Models side by side on the same examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
import torch
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from src.core.metrics import summarise
from src.data.examples import Examples

#: metrics of written answers, over candidate lists, and what the terminal calls them
ANSWERS = {"answer_hit_ratio_1": "answers right", "valid_ratio": "answers valid"}


_TITLES = {"ndcg": "NDCG", "recall": "Recall", "hit_ratio": "HitRatio"}


def metric_title(name: str) -> str:
    """``ndcg_20`` becomes ``NDCG@20``, ``rare_share_20`` ``Rare share@20``; a name without a cut-off stays as it is,
    but for those of a teacher's answers.

    ``masked_`` and ``unmasked_`` (everything seen before left out, or not) follow the title.
    """
    if name in ANSWERS:
        return ANSWERS[name]
    if (way := name.partition("_"))[0] in ("masked", "unmasked"):
        return f"{metric_title(way[2])} {way[0]}"
    stem, _, cut_off = name.rpartition("_")
    words = _TITLES.get(stem, stem.replace("_", " ").capitalize())
    return f"{words}@{cut_off}" if stem and cut_off.isdigit() else name


@dataclass(frozen=True, eq=False)
class ModelRanks:
    """A model's 1-based target ranks ``[N]`` on the examples ``example_id`` ``[N]`` of users ``[N]``.

    ``more``: metrics over the same examples that do not come from the ranks (of answers that a teacher wrote).
    """

    model: str
    split: str
    example_id: NDArray
    user: NDArray
    ranks: Tensor
    more: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, model: str, split: str, examples: Examples, ranks: Tensor, more: Mapping[str, float] | None = None
    ) -> ModelRanks:
        """Ranks of a model over a split, or over a sample of one.

        Args:
            model: its name.
            split: the name of the split, or of the sample.
            examples: those that were ranked.
            ranks: the target's place in each example's ranking, from 1, ``[N]``.
            more: further metrics by name.
        """
        return cls(model, split, examples.example_id, examples.user, ranks.cpu(), more or {})

    def on(self, other: ModelRanks) -> ModelRanks:
        """These ranks restricted to the examples that ``other`` holds, in that order (joined by example_id)."""
        place = pd.Series(range(len(self.example_id)), index=self.example_id).loc[other.example_id].to_numpy()
        return ModelRanks(
            self.model, other.split, other.example_id, other.user, self.ranks[torch.from_numpy(place.copy())]
        )


@dataclass(frozen=True)
class ComparisonRow:
    """One line of the comparison; ``trials`` is how many configurations were tried to find this model.

    ``missing``: why the model could not be computed; it has no metrics then.
    """

    model: str
    split: str
    examples: int
    trials: int
    metrics: Mapping[str, float]
    missing: str = ""


def comparison_row(ranked: ModelRanks, ks: Sequence[int], trials: int) -> ComparisonRow:
    """A model's metrics on the examples it ranked.

    Args:
        ranked: what it ranked.
        ks: cut-offs K.
        trials: how many configurations were tried to find the model.
    """
    metrics = {**summarise(ranked.ranks, ks), **ranked.more}
    return ComparisonRow(ranked.model, ranked.split, len(ranked.ranks), trials, metrics)


def missing_row(model: str, split: str, reason: str) -> ComparisonRow:
    """The line of a model that could not be computed.

    Args:
        model: its name.
        split: where the others of the table were ranked.
        reason: why it is missing, as a reader is told.
    """
    return ComparisonRow(model, split, 0, 0, {}, reason)


def as_frame(rows: Sequence[ComparisonRow]) -> pd.DataFrame:
    """The comparison as a table of plain columns, for CSV; where models are missing, a last column says why."""
    frame = pd.DataFrame(
        [{"model": r.model, "split": r.split, "examples": r.examples, "trials": r.trials, **r.metrics} for r in rows]
    )
    return frame.assign(missing=[r.missing or None for r in rows]) if any(r.missing for r in rows) else frame


def as_table(rows: Sequence[ComparisonRow], ks: Sequence[int], title: str) -> Table:
    """The comparison for the terminal; with one target a row HitRatio is Recall, so it is not shown.

    What only some models have (a teacher's answers) has a column where any of them is in the table.

    Args:
        rows: the table's lines.
        ks: cut-offs K.
        title: stands above it.
    """
    some = (f"masked_ndcg_{max(ks)}", f"unmasked_ndcg_{max(ks)}", *ANSWERS)
    shown = [*(f"ndcg_{k}" for k in ks), f"recall_{max(ks)}", *(m for m in some if any(m in r.metrics for r in rows))]
    table = Table(title=title, title_justify="left")
    for heading in ("model", "split"):
        table.add_column(heading)
    for heading in ("examples", "trials", *map(metric_title, shown)):
        table.add_column(heading, justify="right")
    for r in rows:
        if r.missing:
            table.add_row(r.model, r.split, *["–"] * (2 + len(shown)))
            continue
        values = [f"{r.metrics[name]:.4f}" if name in r.metrics else "" for name in shown]
        table.add_row(r.model, r.split, f"{r.examples:,}", str(r.trials), *values)
    return explain_missing(table, {r.model: r.missing for r in rows if r.missing})


def as_short_table(rows: Sequence[ComparisonRow], k: int, title: str, winner: str) -> Table:
    """What a search found, for the terminal: one line a model, the winner's stands out.

    Args:
        rows: Every model on every split; shown are those that the winner was ranked on as a whole, else as a sample.
        k: The cut-off K.
        title: Of the table.
        winner: The model that the search found.
    """
    ranked_on = list(dict.fromkeys(r.split for r in rows if r.model == winner))
    splits = [split for split in ranked_on if not split.endswith(" sample")] or ranked_on
    on = {(r.model, r.split): r for r in rows}
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    for heading in ("trials", *(f"NDCG@{k} {split}" for split in splits), f"Recall@{k} {splits[-1]}"):
        table.add_column(heading, justify="right")
    for model in dict.fromkeys(r.model for r in rows if r.split in splits):
        shown = [on[model, split] for split in splits]
        if shown[-1].missing:
            table.add_row(model, *["–"] * (2 + len(splits)))
            continue
        values = [f"{r.metrics[f'ndcg_{k}']:.4f}" for r in shown] + [f"{shown[-1].metrics[f'recall_{k}']:.4f}"]
        style = "bold green" if model == winner else None
        table.add_row(model, str(shown[-1].trials), *values, style=style)
    return explain_missing(table, {r.model: r.missing for r in rows if r.missing})


def explain_missing(table: Table, missing: Mapping[str, str]) -> Table:
    """A table for the terminal, below which each missing model has its reason."""
    table.caption = escape("\n".join(f"{model} is missing: {reason}" for model, reason in missing.items())) or None
    table.caption_justify = "left"
    return table


def ranks_frame(rankings: Sequence[ModelRanks]) -> pd.DataFrame:
    """Every target rank, one line an example and model: what paired comparisons are computed from."""
    return pd.concat(
        [
            pd.DataFrame(
                {
                    "model": r.model,
                    "split": r.split,
                    "example_id": r.example_id,
                    "user": r.user,
                    "rank": r.ranks.numpy(),
                }
            )
            for r in rankings
        ],
        ignore_index=True,
    )
