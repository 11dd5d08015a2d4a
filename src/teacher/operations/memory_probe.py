"""Has the language model read this catalogue? How often it completes titles, and lines of the item file, word by word.

Public data sets stand in what language models are pretrained on, titles, ids and all. Where a model knows a catalogue
by heart, what its recommendations gain there says little about data that it has not read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from src.core.errors import ModelError
from src.core.memory import in_parts
from src.core.seed import numpy_generator
from src.data.id_map import IdMap
from src.teacher.backbone.language_head import with_language_head
from src.teacher.backbone.model_config import context_of, table_shape
from src.teacher.ilora_model import GatedTeacher
from src.teacher.labelling.labels import BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE
from src.teacher.prompts import encode_words
from src.teacher.settings import TINY

#: ``interval(values, group)``: 95 % interval of the mean of ``values`` ``[n]`` float64 with groups ``[n]``
Interval = Callable[[NDArray[np.float64], NDArray[np.int64]], tuple[float, float]]

#: lines of the item file that are shown before the one that is asked for, and what stands between id and title
_SHOWN_LINES, _BETWEEN = 3, "::"
_TRIES = 20


@dataclass(frozen=True)
class MemoryProbe:
    """What a language model, its adapters off, completes of ``titles`` titles. All shares 0..1.

    ``completed``: titles whose second half follows their first, word by word and greedily; ``completed_shuffled``: the
    same words in another order, which words alone predict as well. ``lines``: titles that follow their own id, below
    some other lines of the item file; ``lines_mismatched``: titles that follow another item's id. The intervals are
    95 % bootstrap ones of the two differences. ``not_applicable``: why nothing was asked; all figures are then 0.
    """

    titles: int = 0
    completed: float = 0.0
    completed_shuffled: float = 0.0
    interval: tuple[float, float] = (0.0, 0.0)
    lines: float = 0.0
    lines_mismatched: float = 0.0
    lines_interval: tuple[float, float] = (0.0, 0.0)
    not_applicable: str | None = None

    @property
    def has_read(self) -> bool:
        """Whether either difference lies above zero with its whole interval."""
        return self.interval[0] > 0 or self.lines_interval[0] > 0

    def sentence(self) -> str:
        """What was found, and what it means for the evidence, in plain sentences."""
        if self.not_applicable is not None:
            return f"Whether the LLM has read this catalogue cannot be told: {self.not_applicable}."
        low, high = self.interval
        found = (
            f"Of {self.titles} titles the LLM completes {self.completed:.0%} from their first half, and "
            f"{self.completed_shuffled:.0%} of the same words in another order (95 % interval of the difference "
            f"{low:+.3f} to {high:+.3f}); {self.lines:.0%} of titles follow their own id, {self.lines_mismatched:.0%} "
            "another item's"
        )
        if self.has_read:
            return f"{found}: it has read this catalogue, and a gain on data that the LLM has read is weak evidence."
        return f"{found}: no sign that it has read this catalogue, which does not prove that it has not."

    def as_dict(self) -> dict[str, Any]:
        """Every figure and the sentence, for JSON."""
        intervals = {"interval": list(self.interval), "lines_interval": list(self.lines_interval)}
        return {**asdict(self), **intervals, "has_read": self.has_read, "sentence": self.sentence()}


class _Question(NamedTuple):
    """The beginning of a text, and the whole of it."""

    shown: str
    whole: str


def probe_memory(teacher: GatedTeacher, id_map: IdMap, rows: int, seed: int, interval: Interval) -> MemoryProbe:
    """Ask a teacher's language model, adapters off, for titles of its catalogue.

    Args:
        teacher: loaded; it is left as it was.
        id_map: the items with their raw ids and titles.
        rows: titles that are asked for, at most.
        seed: of the sample and the shuffled words.
        interval: gives the interval of a mean.

    Raises:
        OutOfMemory: not even one title fits.
    """
    try:
        head = _head(teacher)
    except ModelError as error:
        return MemoryProbe(not_applicable=error.problems[0].rule)
    drawn = numpy_generator(seed, "memory_probe")
    items = [item for item, title in enumerate(id_map.titles) if len(set(title.split())) > 1]
    items = [items[place] for place in drawn.permutation(len(items))[:rows]]
    if len(items) < 2:
        return MemoryProbe(not_applicable="too few titles have two words")
    words = [id_map.titles[item].split() for item in items]
    others = np.roll(items, 1).tolist()
    asked = (
        [_halves(title) for title in words],
        [_halves(_shuffled(title, drawn)) for title in words],
        [_line(id_map, item, item, drawn) for item in items],
        [_line(id_map, other, item, drawn) for item, other in zip(items, others, strict=True)],
    )
    found = [_completes(teacher, head, questions) for questions in asked]
    group = np.arange(len(items))
    return MemoryProbe(
        titles=len(items),
        completed=float(found[0].mean()),
        completed_shuffled=float(found[1].mean()),
        interval=interval(found[0] - found[1], group),
        lines=float(found[2].mean()),
        lines_mismatched=float(found[3].mean()),
        lines_interval=interval(found[2] - found[3], group),
    )


def _head(teacher: GatedTeacher) -> nn.Module:
    """The language-model head; raises ``ModelError`` where there is none, or nothing that was read before."""
    language = teacher.language
    if teacher.settings.llm == TINY:
        raise ModelError.one("teacher.llm", TINY, "it was made from this dataset's own text")
    if not language.is_decoder:
        raise ModelError.one("teacher.llm", language.name, "it is an encoder, which writes nothing")
    head: nn.Module | None = language.model.get_output_embeddings()
    if head is None:
        head = with_language_head(language).model.get_output_embeddings()
    assert head is not None
    return head


def _halves(words: Sequence[str]) -> _Question:
    half = len(words) // 2
    return _Question(" ".join(words[:half]), " ".join(words))


def _shuffled(words: Sequence[str], drawn: np.random.Generator) -> list[str]:
    """The words in another order: of at least two different ones."""
    for _ in range(_TRIES):
        order = [words[place] for place in drawn.permutation(len(words))]
        if order != list(words):
            return order
    return list(reversed(words)) if list(reversed(words)) != list(words) else [*words[1:], words[0]]


def _line(id_map: IdMap, named: int, item: int, drawn: np.random.Generator) -> _Question:
    """Some lines of the item file, then the id of ``named``, behind which the title of ``item`` is wanted."""
    others = drawn.permutation(id_map.num_items)[: _SHOWN_LINES + 2].tolist()
    shown = [row for row in others if row not in (named, item)][:_SHOWN_LINES]
    lines = [f"{id_map.raw_ids[row]}{_BETWEEN}{id_map.titles[row]}" for row in shown]
    text = "\n".join([*lines, f"{id_map.raw_ids[named]}{_BETWEEN}"])
    return _Question(text, text + id_map.titles[item])


@torch.no_grad()
def _completes(teacher: GatedTeacher, head: nn.Module, questions: Sequence[_Question]) -> NDArray[np.float64]:
    """``[n]``: 1 where the most probable tokens behind what is shown are, one after the other, the rest.

    One pass a question is enough: while all tokens before are right, the next is what greedy decoding would write. A
    text that the model cannot hold is not completed.
    """
    tokenizer, body = teacher.prompts.tokenizer, teacher.llm.get_base_model().base_model
    shown = encode_words(tokenizer, [question.shown for question in questions])
    whole = encode_words(tokenizer, [question.whole for question in questions])
    # nothing remains where the tokens of the beginning are not those with which the whole begins
    rest = [ids[len(part) :] if ids[: len(part)] == part else [] for part, ids in zip(shown, whole, strict=True)]
    begun = [[*teacher.prompts.before, *ids] for ids in shown]
    rows, longest = table_shape(body)[0], context_of(body)
    found = np.zeros(len(questions))
    fits = [
        place
        for place, (ids, wanted) in enumerate(zip(begun, rest, strict=True))
        if ids and wanted and max(*ids, *wanted) < rows and (longest is None or len(ids) + len(wanted) <= longest)
    ]

    def ask(part: Tensor) -> None:
        places = part.tolist()
        right = _all_right(body, head, [begun[place] for place in places], [rest[place] for place in places])
        found[places] = right.double().cpu().numpy()

    training = teacher.training
    teacher.eval()
    try:
        order = torch.tensor(sorted(fits, key=lambda place: len(begun[place]) + len(rest[place])), dtype=torch.int64)
        with teacher.llm.disable_adapter():
            in_parts(order, teacher.settings.export.batch_size, ask, BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE)
    finally:
        teacher.train(training)
    return found


def _all_right(body: Any, head: nn.Module, begun: Sequence[list[int]], rest: Sequence[list[int]]) -> Tensor:
    """``[n]`` bool. Padding stands on the right, where a decoder does not see it."""
    table = body.get_input_embeddings()
    device = table.weight.device
    whole = [torch.tensor([*ids, *wanted]) for ids, wanted in zip(begun, rest, strict=True)]
    states = body(inputs_embeds=table(pad_sequence(whole, batch_first=True).to(device))).last_hidden_state
    row = torch.tensor([row for row, wanted in enumerate(rest) for _ in wanted], device=device)
    place = [len(ids) - 1 + step for ids, wanted in zip(begun, rest, strict=True) for step in range(len(wanted))]
    written = head(states[row, torch.tensor(place, device=device)]).argmax(dim=1)
    wanted = torch.tensor([token for ids in rest for token in ids], device=device)
    wrong = torch.zeros(len(rest), device=device).index_add(0, row, (written != wanted).float())
    return wrong == 0
