"""Items that are added after training: a student scores them from their text, as it scores an item that it never saw.

What that needs is computed with the student and kept beside its weights, by name (`Recommender.from_text`): for the
linear model that is drawn towards texts its solution for any direction of text, for a network an affine map from a
text's embedding to an item's row and bias. The embedding itself comes from the language model that the student was
trained with, which its manifest names (`TextSource`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from src.core.errors import ArtefactError, ConfigError, ProblemsFound

if TYPE_CHECKING:
    from src.student.base import Recommender, SequenceStudent
    from src.student.settings import StudentSettings

#: keys of a network's maps: ``mean`` and ``table`` always, the others where the output has rows of its own
_INPUT, _OUTPUT, _BIAS = "input", "output", "bias"
_STEP = (
    "train it with distill.text_weight above 0 or distill.text_prior=true, or with student.prior=text_linear (or "
    "student=text_linear)"
)


def text_directions(embedding: Tensor, mean: Tensor) -> Tensor:
    """Embeddings ``[n, W]`` around a mean ``[W]``, each of length 1; one that lies at the mean has no direction: 0."""
    return F.normalize(embedding - mean, dim=1)


@dataclass(frozen=True)
class TextMaps:
    """Maps from text embeddings ``[n, W]`` to what a network holds of an item.

    They are maps of ``x - mean``, each ``[W + 1, *]``, whose last row is the constant. ``output``: None where
    output rows are the input rows.
    """

    mean: Tensor
    input: Tensor
    output: Tensor | None
    bias: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """As `Recommender.from_text` holds them: on the CPU, float32."""
        named = {"mean": self.mean, _INPUT: self.input, _OUTPUT: self.output, _BIAS: self.bias}
        return {name: value.detach().float().cpu().contiguous() for name, value in named.items() if value is not None}


def summed(maps: Sequence[TextMaps]) -> TextMaps:
    """Several maps around their own means as one around the first one's mean: their rows are added.

    Output rows and biases are those of the maps that have any: a part that only adds to the input leaves them alone.
    """
    first = maps[0]

    def shifted(found: Tensor, mean: Tensor) -> Tensor:
        # x - mean = (x - first.mean) + (first.mean - mean)
        return torch.cat([found[:-1], found[-1:] + (first.mean - mean).unsqueeze(0) @ found[:-1]])

    def total(parts: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(parts)).sum(dim=0)

    outputs = [shifted(one.output, one.mean) for one in maps if one.output is not None]
    return TextMaps(
        first.mean,
        total([shifted(one.input, one.mean) for one in maps]),
        total(outputs) if outputs else None,
        total([shifted(one.bias, one.mean) for one in maps]),
    )


def constant_maps(student: SequenceStudent, counts: Tensor, width: int) -> TextMaps:
    """Maps for a network whose prior alone reads texts: a new item has the mean row of the items that were seen least.

    Args:
        student: trained.
        counts: how often each item was a training target, ``[V]``.
        width: W.
    """
    least = torch.nonzero(counts == counts.min()).squeeze(1)

    def constant(rows: Tensor) -> Tensor:
        value = rows.detach().float().mean(dim=0)
        return torch.cat([value.new_zeros(width, len(value)), value.unsqueeze(0)])

    output = None if student.tied else constant(student.scorer.weight[least])
    rows, bias = student.item_embeddings.weight[least], student.scorer.bias[least].unsqueeze(1)
    return TextMaps(torch.zeros(width), constant(rows), output, constant(bias))


def takes_items(model: Recommender) -> bool:
    """Whether it scores an item that is added after training."""
    return bool(model.from_text)


def refused(name: str) -> ProblemsFound:
    """Why a student takes no new items."""
    return ConfigError.one("new_items", name, "is a student that reads no text of an item", _STEP)


@torch.no_grad()
def with_items(model: Recommender, settings: StudentSettings, embedding: Tensor) -> Recommender:
    """The student over a larger catalogue, the new items behind the others.

    Args:
        model: on the CPU.
        settings: what it was built from.
        embedding: of the new items' texts, ``[n, W]``.

    Raises:
        ConfigError: it reads no text, or is of one's own and keeps tables that are not known here.
        ArtefactError: the embeddings are of another width than the student was trained with.
    """
    from src.student.base import ClosedForm, SequenceStudent
    from src.student.models import build_recommender

    if not takes_items(model):
        raise refused(settings.architecture)
    wanted = len(model.from_text["mean"])
    if embedding.shape[1] != wanted:
        raise ArtefactError.one("encoder", embedding.shape[1], f"gives embeddings of another width than {wanted}")
    if isinstance(model, ClosedForm):
        return model.with_items(embedding).eval()
    assert isinstance(model, SequenceStudent)
    maps, before = model.from_text, model.num_items
    grown = build_recommender(settings, before + len(embedding), model.window)
    assert isinstance(grown, SequenceStudent)
    if model.prior is not None:
        grown.add_prior(model.prior.with_items(embedding), model.prior_scale)
    around = F.pad(embedding.float() - maps["mean"], (0, 1), value=1.0)
    rows = around @ maps[_INPUT]
    state = dict(model.state_dict())
    table = state["item_embeddings.weight"]
    state["item_embeddings.weight"] = torch.cat([table[:-1], rows, table[-1:]])
    state["scorer.bias"] = torch.cat([state["scorer.bias"], (around @ maps[_BIAS]).squeeze(1)])
    if _OUTPUT in maps:
        state["scorer.weight"] = torch.cat([state["scorer.weight"], around @ maps[_OUTPUT]])
    try:
        grown.load_state_dict(state)
    except RuntimeError as error:
        rule = f"keeps more of an item than its row and bias ({str(error).splitlines()[-1].strip()})"
        raise ConfigError.one("new_items", settings.architecture, rule, "use student=transformer") from None
    grown.from_text = maps
    return grown.eval()
