"""A model in closed form whose scores a network adds to its own: fitted out of fold for training, on all rows for use.

What a training row sees must not know the row's answer. So users are dealt into folds, and the scores of a fold's rows
come from a model that was fitted without its users. Scores are scaled so that their softmax fits the targets best.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.checkpoints import load_weights, save_weights
from src.core.data_utils import ordered_batches
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST, require_finished, write_json
from src.core.seed import torch_generator
from src.data.tensor_examples import TensorExamples
from src.student.artefact import read_model, write_model
from src.student.base import ClosedForm
from src.student.models import build_closed_form
from src.student.settings import ClosedFormSettings, StudentSettings

_BATCH = 2048
#: rows whose targets decide the scale
_SCALE_ROWS = 20_000
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
        """The same of a few items a row, ``[B, n]`` → ``[B, n]``; the others are not read."""
        found = split[rows.to(split.device).unsqueeze(1), items.to(split.device)]
        return found.to(rows.device).float()


def require_prior_fits(rows: int, settings: StudentSettings, num_items: int) -> None:
    """Raises ``ConfigError`` when a prior over so many items and rows would be too large to compute or to keep."""
    name, step = f"student.prior = {settings.architecture}", "use student.prior=none, or a smaller catalogue"
    if isinstance(settings, ClosedFormSettings) and num_items > settings.max_items:
        raise ConfigError.one(name, num_items, f"is computed for at most {settings.max_items} items (max_items)", step)
    if rows * num_items * 2 > MAX_BYTES:
        rule = f"its scores of {rows} training rows over {num_items} items need {rows * num_items * 2 / 2**30:.0f} GB"
        raise ConfigError.one(name, num_items, rule, step)


def folds_of(train: TensorExamples, folds: int, seed: int) -> Tensor:
    """The fold 0..folds-1 of each training row, ``[N]`` int64: all rows of one history's owner are in the same one."""
    owners, owner = torch.unique(train.end - train.earlier, return_inverse=True)
    dealt = torch.randperm(len(owners), generator=torch_generator(seed, "prior_folds")).to(train.device) % folds
    return dealt[owner]


def fit_prior(
    settings: StudentSettings, train: TensorExamples, validation: TensorExamples, num_items: int, folds: int, seed: int
) -> Prior:
    """Fit a prior out of fold and on all rows.

    Args:
        settings: of a model in closed form.
        train: the training split.
        validation: the validation split, whose scores come from the model that is fitted on all training rows.
        num_items: V.
        folds: how many parts the users are dealt into.
        seed: decides the folds.

    Raises:
        ConfigError: the architecture is no model in closed form, or see `require_prior_fits`.
    """
    require_prior_fits(len(train), settings, num_items)
    fold = folds_of(train, folds, seed)
    scores = torch.empty(len(train), num_items)
    for part in range(folds):
        model = build_closed_form(settings, num_items, train.window).to(train.device)
        model.fit(train, torch.nonzero(fold != part).squeeze(1))
        own = torch.nonzero(fold == part).squeeze(1)
        _score(model, train, own, scores)
    scale = best_scale(scores, train.target, seed)
    served = build_closed_form(settings, num_items, train.window).to(train.device)
    served.fit(train, torch.arange(len(train), device=train.device))
    shown = torch.empty(len(validation), num_items)
    _score(served, validation, torch.arange(len(validation), device=train.device), shown)
    return Prior(served.eval(), settings, scale, scores.mul_(scale).half(), shown.mul_(scale))


@torch.no_grad()
def _score(model: ClosedForm, examples: TensorExamples, rows: Tensor, into: Tensor) -> None:
    for batch in rows.split(_BATCH):
        found = model(*examples.read(batch, model.history_length))
        into[batch.cpu()] = found.to(into.dtype).cpu()


def best_scale(scores: Tensor, target: Tensor, seed: int) -> float:
    """The factor s > 0 under which softmax(s · scores) gives the targets the largest likelihood.

    ``scores`` ``[N, V]``, ``target`` ``[N]``; a sample of the rows decides.
    """
    count = min(len(target), _SCALE_ROWS)
    rows = torch.randperm(len(target), generator=torch_generator(seed, "prior_scale"))[:count]
    shown, wanted = scores[rows].float(), target.cpu()[rows]
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


def load_prior(folder: Path, device: torch.device | str) -> Prior:
    """Read what `save_prior` wrote; raises ``ArtefactError`` when it is unfinished or damaged."""
    manifest = require_finished(folder)
    model, settings = read_model(folder, manifest)
    if not isinstance(model, ClosedForm):
        raise ArtefactError.one("prior", str(folder), "is no model in closed form")
    scores = load_weights(folder / _SCORES)
    model.to(device).eval()
    return Prior(
        model, settings, float(manifest["scale"]), *(scores[name].to(device) for name in ("train", "validation"))
    )
