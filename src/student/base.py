"""What every student is: something that scores the catalogue for a history. And where architectures register.

A history is ``[B, L]`` item ids (0..V-1, padding V, on the right) with lengths ``[B]``; scores are ``[B, V]``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.data.tensor_examples import TensorExamples
from src.student.sampled_columns import Columns
from src.student.settings import NetworkSettings, StudentSettings

M = TypeVar("M", bound="Recommender")

#: output rows ``[*, R]`` and biases ``[*]``
Rows = tuple[Tensor, Tensor]


class Recommender(nn.Module):
    """Scores the catalogue for histories."""

    def __init__(self, num_items: int, window: int) -> None:
        super().__init__()
        self.num_items, self.padding_id = num_items, num_items
        #: how many items of history it reads, the latest ones
        self.window = window
        #: what scores an item from its text (`src.student.new_items`), by name; empty where nothing does
        self.from_text: dict[str, Tensor] = {}

    def text_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """The shapes of what `from_text` must hold where it holds anything, for text embeddings of this width."""
        return {}

    @property
    def history_length(self) -> int:
        """How wide a history `forward` wants to see; wider ones are cut to the latest items."""
        return self.window

    @property
    def device(self) -> torch.device:
        """Where its tensors lie."""
        for tensor in (*self.parameters(), *self.buffers()):
            return tensor.device
        return torch.device("cpu")

    def forward(self, history: Tensor, length: Tensor) -> Tensor:
        """Scores ``[B, V]`` of histories ``[B, L]`` with lengths ``[B]``."""
        raise NotImplementedError


class ClosedForm(Recommender):
    """A recommender whose buffers are computed from training rows in one go."""

    #: a few settings to try, each a mapping of fields, the most promising first: how a comparison tunes this model
    settings_to_try: tuple[dict[str, Any], ...] = ({},)

    def __init__(self, settings: StudentSettings, num_items: int, window: int) -> None:
        super().__init__(num_items, window)
        self.settings = settings
        #: the items' text embeddings ``[V, W]``, for a model whose settings read them; set before `fit`
        self.item_text: Tensor | None = None

    def fit(self, train: TensorExamples, rows: Tensor) -> None:
        """Compute everything from these rows (``[n]`` int64 row numbers) of the training split."""
        raise NotImplementedError

    def score_items(self, history: Tensor, length: Tensor, items: Tensor) -> Tensor:
        """Scores ``[B, n]`` of a few items a row, ``[B, n]``."""
        return self(history, length).gather(1, items)  # type: ignore[no-any-return]

    def with_items(self, embedding: Tensor) -> ClosedForm:
        """The model with items behind the others that nobody has met, from their texts' embeddings ``[n, W]``."""
        rule = "cannot take items that were added after training"
        raise ConfigError.one("new_items", self.settings.architecture, rule, "use student.prior=linear, or text_linear")


def recent(history: Tensor, length: Tensor, window: int, padding_id: int) -> tuple[Tensor, Tensor]:
    """The last ``window`` items of histories ``[B, L]``, left-aligned ``[B, min(window, L)]``, and their lengths.

    Args:
        history: item ids, oldest first, padded on the right.
        length: ``[B]``, 0 to L.
        window: items that are wanted at most.
        padding_id: V.
    """
    if history.shape[1] <= window:
        return history, length
    kept = length.clamp(max=window)
    place = torch.arange(window, device=history.device)
    cut = history.gather(1, ((length - kept).unsqueeze(1) + place).clamp(max=history.shape[1] - 1))
    return cut.masked_fill(place >= kept.unsqueeze(1), padding_id), kept


class Scorer(nn.Linear):
    """One free row an item: logits ``[B, V]`` of representations ``[B, R]``."""

    #: whether `rows` and `score` have gradients of the rows that were read alone
    sparse = False

    def rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """Output rows ``[*, R]`` and biases ``[*]`` of a few items, without touching the rest of the catalogue."""
        return F.embedding(items, self.weight, sparse=self.sparse), _picked(self.bias, items, self.sparse)

    def score(self, representation: Tensor, items: Tensor) -> Tensor:
        """Logits of a few items a row, ``[B, n]``, without touching the rest of the catalogue."""
        weight = F.embedding(items, self.weight)
        return torch.einsum("br,bnr->bn", representation, weight) + self.bias[items]


class TiedScorer(nn.Module):
    """The student's own item embeddings are the output rows, too; only a bias an item is added."""

    #: as in `Scorer`
    sparse = False

    def __init__(self, embeddings: nn.Embedding, num_items: int) -> None:
        super().__init__()
        # a tuple, because the table belongs to the student and must not be saved twice
        self._embeddings = (embeddings,)
        self.in_features = embeddings.embedding_dim
        self.bias = nn.Parameter(torch.zeros(num_items))

    @property
    def weight(self) -> Tensor:
        """``[V, D]``: the table without its padding row."""
        return self._embeddings[0].weight[:-1]

    def forward(self, representation: Tensor) -> Tensor:
        """Logits ``[B, V]``."""
        return F.linear(representation, self.weight, self.bias)

    def rows(self, items: Tensor) -> tuple[Tensor, Tensor]:
        """As `Scorer.rows`."""
        weight = F.embedding(items, self._embeddings[0].weight, sparse=self.sparse)
        return weight, _picked(self.bias, items, self.sparse)

    def score(self, representation: Tensor, items: Tensor) -> Tensor:
        """Logits of a few items a row, ``[B, n]``."""
        weight = F.embedding(items, self._embeddings[0].weight)
        return torch.einsum("br,bnr->bn", representation, weight) + self.bias[items]


def _picked(values: Tensor, items: Tensor, sparse: bool) -> Tensor:
    """``[V]`` at ``[*]``; the gradient holds these places alone where it is sparse."""
    return torch.gather(values, 0, items.flatten(), sparse_grad=sparse).view(items.shape)


#: ``scores(first, last)``: ``[B, last - first]`` of some rows for the items first..last-1
ScorePart = Callable[[int, int], Tensor]


class SequenceStudent(Recommender):
    """A network: an item table, an encoder of histories, a linear scorer, and perhaps a prior in closed form.

    ``extra`` ``[B, L, D]`` is added to the item embeddings: the teacher's item embeddings enter there during
    distillation and are folded into the table afterwards.
    """

    #: the standard deviation that item embeddings start with
    INITIAL_STD = 0.01

    def __init__(
        self, settings: NetworkSettings, num_items: int, window: int, representation: int, tied: bool = False
    ) -> None:
        super().__init__(num_items, window)
        self.item_embeddings = nn.Embedding(num_items + 1, settings.width)
        nn.init.normal_(self.item_embeddings.weight, std=self.INITIAL_STD)
        self.dropout = nn.Dropout(settings.dropout)
        self.scorer: Scorer | TiedScorer = (
            TiedScorer(self.item_embeddings, num_items) if tied else Scorer(representation, num_items)
        )
        self.prior_gain: nn.Parameter | None = None
        self.prior_scale = 1.0
        # a tuple, because it is fitted once and must not be copied with each state of the network
        self._prior: tuple[ClosedForm, ...] = ()

    def text_shapes(self, width: int) -> dict[str, tuple[int, ...]]:
        """As `Recommender.text_shapes`: maps of texts to rows and biases; output rows of their own are optional."""
        rows = {"input": self.item_embeddings.embedding_dim, "bias": 1}
        if "output" in self.from_text:
            rows["output"] = self.representation
        return {"mean": (width,), **{key: (width + 1, size) for key, size in rows.items()}}

    @property
    def representation(self) -> int:
        """R, the width of a history's representation."""
        return int(self.scorer.in_features)

    def add_prior(self, prior: ClosedForm, scale: float) -> None:
        """From now on logits are the network's plus gain · ``scale`` · the prior's scores; the gain starts at 1."""
        # several students of a process share one prior: another one may have taken it to another device
        moved = prior if self.device.type == "meta" else prior.to(self.device)  # on meta only shapes are looked at
        self._prior, self.prior_scale = (moved,), scale
        self.prior_gain = nn.Parameter(torch.ones((), device=self.item_embeddings.weight.device))

    @property
    def history_length(self) -> int:
        """As `Recommender.history_length`: the prior may look further back."""
        return max(self.window, self.prior.history_length if self.prior is not None else 0)

    @property
    def prior(self) -> ClosedForm | None:
        """What was added with `add_prior`. It is not in `state_dict`, and is saved as a model of its own."""
        return self._prior[0] if self._prior else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> SequenceStudent:
        for prior in self._prior:
            prior._apply(fn, recurse)
        super()._apply(fn, recurse)
        return self

    def embed(self, history: Tensor, extra: Tensor | None) -> Tensor:
        """Item embeddings of a history, plus the teacher's part: ``[B, L, D]``."""
        embedded: Tensor = self.item_embeddings(history)
        return embedded if extra is None else embedded + extra

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, R]`` of each history, which is no wider than ``window``."""
        raise NotImplementedError

    @torch.no_grad()
    def prior_scores(self, history: Tensor, length: Tensor) -> Tensor | None:
        """What the prior says, ``[B, V]``, as `logits` takes it; None without a prior."""
        return None if self.prior is None else self.prior_scale * self.prior(history, length)

    def logits(self, representation: Tensor, prior_scores: Tensor | None) -> Tensor:
        """Logits ``[B, V]`` of representations ``[B, R]`` and of `prior_scores` ``[B, V]``."""
        return self.add_prior_scores(self.scorer(representation), prior_scores)

    def add_prior_scores(self, own: Tensor, prior_scores: Tensor | None) -> Tensor:
        """The network's own logits ``[B, V]`` with what the prior adds."""
        return own if prior_scores is None or self.prior_gain is None else own + self.prior_gain * prior_scores

    def score_items(self, representation: Tensor, items: Tensor, prior_scores: Tensor | None = None) -> Tensor:
        """Logits of a few items a row, ``[B, n]``, without touching the rest of the catalogue."""
        own = self.scorer.score(representation, items)
        if prior_scores is None or self.prior_gain is None:
            return own
        return own + self.prior_gain * prior_scores.gather(1, items)

    def forward(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Logits ``[B, V]`` over the catalogue."""
        return self.logits(self.encode(*self.seen(history, length), extra), self.prior_scores(history, length))

    def column_logits(
        self, representation: Tensor, columns: Columns, prior_scores: Tensor | None, rows: Rows | None = None
    ) -> Tensor:
        """Logits ``[B, M]`` of the items that a step looks at.

        Args:
            representation: ``[B, R]``.
            columns: those items.
            prior_scores: what the prior says of them, ``[B, M]``.
            rows: output rows and biases of ``columns.flat`` that take the place of the student's own.
        """
        weight, bias = rows or self.scorer.rows(columns.flat)
        return self.add_prior_scores(columns.logits(representation, weight, bias), prior_scores)

    def sparse_gradients(self) -> list[nn.Parameter]:
        """From now on the gradients of the tables with a row an item hold the rows alone that a step has read; returns
        these tables, for `src.core.lazy_adam`."""
        self.item_embeddings.sparse = True
        self.scorer.sparse = True
        free = [] if isinstance(self.scorer, TiedScorer) else [cast(nn.Parameter, self.scorer.weight)]
        return [cast(nn.Parameter, self.item_embeddings.weight), *free, self.scorer.bias]

    @property
    def in_parts(self) -> bool:
        """Whether `score_parts` needs less memory than all scores do: not with a prior, nor where a student of one's
        own scores in another way."""
        own = type(self)
        return self.prior is None and own.forward is SequenceStudent.forward and own.logits is SequenceStudent.logits

    def score_parts(self, history: Tensor, length: Tensor) -> ScorePart:
        """The scores of histories for a part of the catalogue at a time; where `in_parts`."""
        representation = self.encode(*self.seen(history, length))
        weight, bias = self.scorer.weight, self.scorer.bias
        return lambda first, last: F.linear(representation, weight[first:last], bias[first:last])

    def seen(self, history: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """What `encode` reads of histories that may be wider."""
        return recent(history, length, self.window, self.padding_id)

    @property
    def tied(self) -> bool:
        """Whether the item embeddings are the output rows."""
        return isinstance(self.scorer, TiedScorer)

    @torch.no_grad()
    def set_output(self, weight: Tensor, bias: Tensor) -> None:
        """Put these output rows ``[V, R]`` and biases ``[V]`` in place; tied rows are the item embeddings."""
        self.scorer.weight.copy_(weight)
        self.scorer.bias.copy_(bias)


# ----------------------------------------------------------------------------------------------------- registration


@dataclass(frozen=True)
class Architecture:
    """A kind of student: the class of its settings, and what makes a model of them, a catalogue and a window."""

    name: str
    settings: type[StudentSettings]
    build: Callable[[Any, int, int], Recommender]
    closed_form: bool


#: filled by `register`, read by `src.student.models`
ARCHITECTURES: dict[str, Architecture] = {}


def register(name: str, settings: type[StudentSettings]) -> Callable[[type[M]], type[M]]:
    """Make a class known as ``student.architecture=name``; it is built as ``cls(settings, num_items, window)``."""

    def keep(cls: type[M]) -> type[M]:
        ARCHITECTURES[name] = Architecture(name, settings, cls, issubclass(cls, ClosedForm))
        return cls

    return keep
