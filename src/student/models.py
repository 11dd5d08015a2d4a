"""SASRec, GRU4Rec and Caser as DLLM2Rec trains them (golden §2), at any width, number of heads and teacher width.

A history is ``[B, L]`` item ids (0..V-1, padding V, on the right) with lengths ``[B]``; its representation is
``[B, R]`` and the logits are ``[B, V]``. ``extra`` ``[B, L, D]`` is added to the item embeddings: the teacher's item
embeddings enter there during distillation and are folded into the table afterwards.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from src.core.errors import ConfigError
from src.student.settings import StudentSettings


class SequenceStudent(nn.Module):
    """An item table, an encoder of histories, and a linear scorer over the catalogue."""

    def __init__(self, settings: StudentSettings, num_items: int, history_length: int, representation: int) -> None:
        super().__init__()
        self.num_items, self.history_length = num_items, history_length
        self.padding_id = num_items
        self.item_embeddings = nn.Embedding(num_items + 1, settings.width)
        nn.init.normal_(self.item_embeddings.weight, std=0.01)
        self.dropout = nn.Dropout(settings.dropout)
        self.scorer = nn.Linear(representation, num_items)

    @property
    def representation(self) -> int:
        """R, the width of a history's representation."""
        return self.scorer.in_features

    def embed(self, history: Tensor, extra: Tensor | None) -> Tensor:
        """Item embeddings of a history, plus the teacher's part: ``[B, L, D]``."""
        embedded: Tensor = self.item_embeddings(history)
        return embedded if extra is None else embedded + extra

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, R]`` of each history."""
        raise NotImplementedError

    def forward(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Logits ``[B, V]`` over the catalogue."""
        logits: Tensor = self.scorer(self.encode(history, length, extra))
        return logits

    def score_items(self, representation: Tensor, items: Tensor) -> Tensor:
        """Logits of a few items a row, ``[B, n]``, without touching the rest of the catalogue."""
        weight = F.embedding(items, self.scorer.weight)
        return torch.einsum("br,bnr->bn", representation, weight) + self.scorer.bias[items]


class LastQueryAttention(nn.Module):
    """SASRec's attention for the last query only, which is all that next-item prediction reads.

    As published, keys and values come from the un-normalised input, scores are scaled by sqrt(D) (not the head's
    width), and there is no output projection. For one query, (x W_k)·q = x·(W_k^T q) and Σ a (W_v x) = W_v (Σ a x):
    the projections are applied to one vector a head instead of L.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, query: Tensor, keys: Tensor, visible: Tensor) -> Tensor:
        """query ``[B, D]``, keys ``[B, L, D]``, visible ``[B, L]`` bool → ``[B, D]``."""
        batch, width = query.shape
        split = (self.heads, width // self.heads)
        q = self.query(query).view(batch, *split)
        folded = torch.einsum("bhe,hed->bhd", q, self.key.weight.view(*split, width))
        offset = (q * self.key.bias.view(split)).sum(dim=2, keepdim=True)
        scores = (folded @ keys.transpose(1, 2) + offset) / width**0.5
        lowest = torch.finfo(scores.dtype).min
        weights = self.dropout(scores.masked_fill(~visible.unsqueeze(1), lowest).softmax(dim=2))
        context = torch.einsum("bhd,hed->bhe", weights @ keys, self.value.weight.view(*split, width))
        # dropout leaves weights that do not sum to one, and the value's bias is weighted by that sum
        biased = context + weights.sum(dim=2, keepdim=True) * self.value.bias.view(split)
        return biased.reshape(batch, width)


class SASRec(SequenceStudent):
    """Self-attentive sequential recommendation, one block, at the last position (golden §2)."""

    def __init__(self, settings: StudentSettings, num_items: int, history_length: int) -> None:
        super().__init__(settings, num_items, history_length, settings.width)
        width = settings.width
        self.positions = nn.Embedding(history_length, width)
        nn.init.normal_(self.positions.weight, std=0.01)
        self.norm_query, self.norm_hidden, self.norm_inner, self.norm_out = (nn.LayerNorm(width) for _ in range(4))
        self.attention = LastQueryAttention(width, settings.heads, settings.dropout)
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, D]``: LN3's output at position length − 1 (the "user vector" of iLoRA)."""
        real = history != self.padding_id
        last = length.clamp(min=1).unsqueeze(1) - 1
        x = self.dropout(self.embed(history, extra) + self.positions.weight) * real.unsqueeze(2)
        query = self.norm_query(x.gather(1, last.unsqueeze(2).expand(-1, 1, x.shape[2])).squeeze(1))
        visible = real & (torch.arange(history.shape[1], device=history.device) <= last)
        alive = real.gather(1, last)
        hidden = self.norm_hidden(self.attention(query, x, visible) * alive + query)
        inner = self.dropout(self.outer(F.relu(self.inner(hidden))))
        out: Tensor = self.norm_out(self.norm_inner(inner + hidden) * alive)
        return out


class GRU4Rec(SequenceStudent):
    """One GRU layer over the first max(1, length) steps; its last hidden state (golden §2)."""

    def __init__(self, settings: StudentSettings, num_items: int, history_length: int) -> None:
        super().__init__(settings, num_items, history_length, settings.width)
        self.gru = nn.GRU(settings.width, settings.width, batch_first=True)

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, D]``; steps after the last one run too, but nothing reads them."""
        states, _ = self.gru(self.dropout(self.embed(history, extra)))
        last = (length.clamp(min=1) - 1).view(-1, 1, 1).expand(-1, 1, states.shape[2])
        return self.dropout(states.gather(1, last).squeeze(1))


class Caser(SequenceStudent):
    """Horizontal and vertical convolutions over the padded window (golden §2)."""

    def __init__(self, settings: StudentSettings, num_items: int, history_length: int) -> None:
        sizes = settings.filter_sizes
        if max(sizes) > history_length:
            raise ConfigError.one(
                "student.filter_sizes", list(sizes), f"must not exceed the history length {history_length}"
            )
        super().__init__(settings, num_items, history_length, settings.num_filters * len(sizes) + settings.width)
        self.horizontal = nn.ModuleList(nn.Conv1d(settings.width, settings.num_filters, size) for size in sizes)
        self.vertical = nn.Linear(history_length, 1)

    def encode(self, history: Tensor, length: Tensor, extra: Tensor | None = None) -> Tensor:
        """Representation ``[B, F·sizes + D]``; the window includes padded places, as published."""
        real = (history != self.padding_id).unsqueeze(2)
        columns = (self.embed(history, extra) * real).transpose(1, 2)
        windows = [F.relu(convolution(columns)).amax(dim=2) for convolution in self.horizontal]
        vertical = F.relu(self.vertical(columns)).squeeze(2)
        return self.dropout(torch.cat([*windows, vertical], dim=1))


_ARCHITECTURES = {"sasrec": SASRec, "gru4rec": GRU4Rec, "caser": Caser}


def build_student(settings: StudentSettings, num_items: int, history_length: int) -> SequenceStudent:
    """A freshly initialised student; draws from torch's global stream.

    Raises ``ConfigError`` when a Caser filter is longer than the history.
    """
    return _ARCHITECTURES[settings.architecture](settings, num_items, history_length)


class TeacherItemInput(nn.Module):
    """``ed_weight`` · (e_llm W^T + b), added to the student's item embeddings (collaborative embedding distillation).

    The frozen table ``[rows, W_llm]`` may have fewer rows than there are items; missing rows and the padding id read as
    zeros, and the bias is added at every place, padded ones too, as published (golden §2).
    """

    table: Tensor

    def __init__(self, item_embedding: Tensor, num_items: int, width: int, weight: float) -> None:
        super().__init__()
        missing = num_items + 1 - item_embedding.shape[0]
        self.register_buffer("table", F.pad(item_embedding, (0, 0, 0, missing)), persistent=False)
        self.projection = nn.Linear(item_embedding.shape[1], width)
        self.weight = weight

    def rows(self) -> Tensor:
        """``[V + 1, D]``: what is added for every item and for padding."""
        projected: Tensor = self.projection(self.table)
        return self.weight * projected

    def forward(self, history: Tensor) -> Tensor:
        """``[B, L, D]``; projects the table or the gathered places, whichever is fewer rows."""
        if history.numel() < self.table.shape[0]:
            gathered: Tensor = self.weight * self.projection(F.embedding(history, self.table))
            return gathered
        return F.embedding(history, self.rows())

    @torch.no_grad()
    def fold_into(self, student: SequenceStudent) -> None:
        """Add the projected embeddings to the student's own table: it then gives the same logits alone."""
        student.item_embeddings.weight += self.rows()
