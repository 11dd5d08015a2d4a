"""A model in closed form whose scores a network adds to its own: fitted out of fold for training, on all rows for use.

What a training row sees must not know the row's answer. So users are dealt into folds, and the scores of a fold's rows
come from a model that was fitted without its users. Scores are scaled so that their softmax fits the targets best.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass as document
from torch import Tensor

from src.core.checkpoints import load_weights, save_weights
from src.core.data_utils import ordered_batches
from src.core.documents import PARTIAL, conform
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST, require_finished, write_json
from src.core.seed import reproducible, torch_generator
from src.data.tensor_examples import TensorExamples
from src.student.artefact import ModelFacts, read_closed_form, write_model
from src.student.base import ClosedForm
from src.student.closed_form_cost import SCALE_ROWS
from src.student.decayed_history import DecayedHistory
from src.student.models import build_closed_form
from src.student.settings import ClosedFormSettings, StudentSettings

_BATCH = 2048
_PRECISION = 0.01  # of the scale's logarithm
#: scores of training rows kept at once; more are refused
MAX_BYTES = 8 * 2**30


@dataclass(frozen=True, eq=False)
class Prior:
    """A fitted prior, and its scaled scores: ``train`` ``[N, V]`` float16, ``validation`` ``[M, V]`` float32."""

    model: ClosedForm
    settings: StudentSettings
    scale: float
    train: Tensor
    validation: Tensor

    def of(self, split: Tensor, rows: Tensor) -> Tensor:
        """Scaled scores ``[B, V]`` float32 of some rows of `train` or `validation`."""
        return split[rows.to(split.device)].to(rows.device).float()

    def of_items(self, split: Tensor, rows: Tensor, items: Tensor) -> Tensor:
        """The same of a few items a row, ``[B, n]`` → ``[B, n]``; the others are not read.

        Args:
            split: the prior's scores of a split, ``[N, V]``.
            rows: row numbers ``[B]``.
            items: ``[B, n]``.
        """
        found = split[rows.to(split.device).unsqueeze(1), items.to(split.device)]
        return found.to(rows.device).float()


def require_prior_fits(rows: int, settings: StudentSettings, num_items: int) -> None:
    """Raises ``ConfigError`` when a prior over so many items and rows would be too large to compute or to keep.

    Args:
        rows: how many training rows there are.
        settings: the prior's own.
        num_items: V.
    """
    name, step = f"student.prior = {settings.architecture}", "use student.prior=none, or a smaller catalogue"
    if isinstance(settings, ClosedFormSettings) and settings.too_large(num_items):
        raise ConfigError.one(name, num_items, f"is computed for at most {settings.max_items} items (max_items)", step)
    if rows * num_items * 2 > MAX_BYTES:
        rule = f"its scores of {rows} training rows over {num_items} items need {rows * num_items * 2 / 2**30:.0f} GB"
        raise ConfigError.one(name, num_items, rule, step)


def folds_of(train: TensorExamples, folds: int, seed: int) -> Tensor:
    """The fold 0..folds-1 of each training row, ``[N]`` int64: all rows of one history's owner are in the same one.

    Args:
        train: the training examples.
        folds: how many.
        seed: decides who is where.
    """
    owners, owner = torch.unique(train.end - train.earlier, return_inverse=True)
    dealt = torch.randperm(len(owners), generator=torch_generator(seed, "prior_folds")).to(train.device) % folds
    return dealt[owner]


def fit_prior(
    settings: StudentSettings,
    train: TensorExamples,
    validation: TensorExamples,
    num_items: int,
    folds: int,
    seed: int,
    item_text: Tensor | None = None,
) -> Prior:
    """Fit a prior out of fold and on all rows.

    Args:
        settings: of a model in closed form.
        train: the training split.
        validation: the validation split, whose scores come from the model that is fitted on all training rows.
        num_items: V.
        folds: how many parts the users are dealt into.
        seed: decides the folds.
        item_text: the items' text embeddings ``[V, W]``, for a model that reads them.

    Raises:
        ConfigError: the architecture is no model in closed form, or see `require_prior_fits`.
    """
    require_prior_fits(len(train), settings, num_items)
    # the order of a sum depends on the number of threads, and trainings must repeat bit by bit
    with reproducible(settings.threads):
        fold = folds_of(train, folds, seed).cpu()
        everyone = torch.arange(len(train))

        def new() -> ClosedForm:
            model = build_closed_form(settings, num_items, train.window).to(train.device)
            model.item_text = item_text
            return model

        models = [*_out_of_fold(new, train, fold, folds)]
        asked = torch.randperm(len(train), generator=torch_generator(seed, "prior_scale"))[:SCALE_ROWS]
        scale = best_scale(_scores_of_folds(models, train, fold, asked), train.target.cpu()[asked])
        scores = _scores_of_folds(models, train, fold, everyone, scale, torch.float16)
        served = new()
        served.fit(train, everyone.to(train.device))
        shown = _scores(served, validation, torch.arange(len(validation)), scale)
    return Prior(served.eval(), settings, scale, scores, shown)


def _out_of_fold(
    new: Callable[[], ClosedForm], train: TensorExamples, fold: Tensor, folds: int
) -> Iterator[ClosedForm]:
    """For each fold, yield the model that is fitted without it.

    Sums that add up are counted once over everybody and once over what is held out, in place of once over the rest of
    each fold; of two folds either is the other's rest.
    """
    everyone = torch.arange(len(train), device=train.device)
    total: tuple[Tensor, ...] | None = None
    for part in range(folds):
        model, rows = new(), torch.nonzero(fold != part).squeeze(1).to(train.device)
        if folds == 2 or not isinstance(model, DecayedHistory) or not model.adds_up:
            model.fit(train, rows)
        else:
            total = total or model.sums(train, everyone)
            held = model.sums(train, torch.nonzero(fold == part).squeeze(1).to(train.device))
            model.solve(tuple(own.neg_().add_(whole) for own, whole in zip(held, total, strict=True)), train, rows)
        yield model


def _scores_of_folds(
    models: Sequence[ClosedForm],
    train: TensorExamples,
    fold: Tensor,
    rows: Tensor,
    scale: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Scores of training rows on the CPU, each by the model that was fitted without the row's fold: ``[n, V]``."""
    scores = torch.empty(len(rows), models[0].num_items, dtype=dtype)
    for part, model in enumerate(models):
        own = torch.nonzero(fold[rows] == part).squeeze(1)
        for batch in own.split(_BATCH):
            scores[batch] = _scores(model, train, rows[batch], scale).to(dtype)
    return scores


@torch.no_grad()
def _scores(model: ClosedForm, examples: TensorExamples, rows: Tensor, scale: float) -> Tensor:
    """Scaled scores of some rows, ``[n, V]`` float32 on the CPU."""
    scores = torch.empty(len(rows), model.num_items)
    for at in ordered_batches(len(rows), _BATCH):
        found = model(*examples.read(rows[at].to(examples.device), model.history_length))
        scores[at] = found.float().cpu() * scale
    return scores


def best_scale(scores: Tensor, target: Tensor) -> float:
    """The factor s > 0 under which softmax(s · scores) gives the targets the largest likelihood.

    ``scores`` ``[N, V]`` float32, ``target`` ``[N]``.
    """
    count, shown, wanted = len(target), scores, target
    unit = float(shown.std()) or 1.0

    def loss(scale: float) -> float:
        total = sum(
            float(F.cross_entropy(shown[part] * (scale / unit), wanted[part], reduction="sum"))
            for part in ordered_batches(count, _BATCH)
        )
        return total / count

    # golden-section search on a logarithmic scale: the loss is convex in the factor
    ratio = (5**0.5 - 1) / 2
    a, b = math.log(1e-2), math.log(1e2)
    left, right = b - ratio * (b - a), a + ratio * (b - a)
    at_left, at_right = loss(math.exp(left)), loss(math.exp(right))
    while b - a > _PRECISION:
        if at_left < at_right:
            b, right, at_right = right, left, at_left
            left = b - ratio * (b - a)
            at_left = loss(math.exp(left))
        else:
            a, left, at_left = left, right, at_right
            right = a + ratio * (b - a)
            at_right = loss(math.exp(right))
    return math.exp((a + b) / 2) / unit


_SCORES = "scores.safetensors"


def save_prior(folder: Path, prior: Prior) -> None:
    """Write a prior into an existing folder, its manifest last."""
    save_weights(folder / _SCORES, {"train": prior.train, "validation": prior.validation})
    facts = write_model(folder, prior.model, prior.settings)
    write_json(folder / MANIFEST, {**facts, "kind": "prior", "scale": prior.scale})


@document(frozen=True, config=PARTIAL)
class _Manifest(ModelFacts):
    """What is read of a prior's manifest."""

    scale: Annotated[float, Field(gt=0)]


def load_prior(folder: Path, device: torch.device | str) -> Prior:
    """Read what `save_prior` wrote; raises ``ArtefactError`` when it is unfinished or damaged."""
    again = "remove it and run again"
    manifest = conform(require_finished(folder), _Manifest, folder / MANIFEST, again)
    model = read_closed_form(folder, manifest)
    scores = load_weights(folder / _SCORES)
    found = {name: (values.dim(), values.shape[-1:], values.is_floating_point()) for name, values in scores.items()}
    if found != dict.fromkeys(("train", "validation"), (2, (manifest.num_items,), True)):
        rule = f"must hold a score for each of {manifest.num_items} items in each training and validation row"
        raise ArtefactError.one("scores", str(folder / _SCORES), rule, again)
    model.to(device).eval()
    return Prior(
        model, manifest.settings, manifest.scale, *(scores[name].to(device) for name in ("train", "validation"))
    )
