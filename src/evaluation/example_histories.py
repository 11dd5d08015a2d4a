"""A few histories with titles, and what models recommend after each: numbers do not show what a list is like.

Which histories are shown follows from a seed and a rule that no result can change: half of them are drawn from all
examples, half from those in which exactly one of baseline and winner has the next item in its list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from pydantic.dataclasses import dataclass as document

from src.core.documents import PARTIAL, conform, read_json_document
from src.core.seed import numpy_generator
from src.data.examples import Examples
from src.data.id_map import IdMap

#: histories that are shown, how many of them at most are drawn from those in which the two models differ, the length
#: of a list, and of a history as it is shown
COUNT, DIFFERING, LISTED, SHOWN = 12, 6, 5, 10

#: what a count and a row's number may be: a file may come from anybody
Count = Annotated[int, Field(ge=0)]

Role = Literal["baseline", "winner", "teacher", "closed form"]
Drawn = Literal["from all", "from those that differ"]


@document(frozen=True, config=PARTIAL)
class Item:
    """An item as people know it; ``title`` is "" where the source has none."""

    raw_id: str
    title: str


@document(frozen=True, config=PARTIAL)
class ExampleHistory:
    """The last items of a history, oldest first, the item that came next, and each model's list, best first.

    ``earlier`` items of the user stand before ``history``. A model that has no list of this example is not in
    ``lists``.
    """

    example_id: Count
    drawn: Drawn
    earlier: Count
    history: Annotated[list[Item], Field(max_length=SHOWN)]
    target: Item
    lists: dict[Role, list[Item]]


@document(frozen=True, config=PARTIAL)
class ExampleHistories:
    """What `metrics/examples.json` holds.

    ``models``: names by role, in the order in which they are shown. ``pool``: the validation examples that these were
    drawn from; ``only_winner`` and ``only_baseline``: in how many of them that model alone has the next item in its
    list of ``listed``. ``seen_left_out``: lists hold nothing that the user had met before. ``no_teacher``: why a
    teacher whose labels were learned has no lists, or "".
    """

    models: dict[Role, str]
    listed: Annotated[int, Field(ge=1)]
    pool: Count
    only_winner: Count
    only_baseline: Count
    seen_left_out: bool
    no_teacher: str
    examples: Annotated[list[ExampleHistory], Field(max_length=COUNT)]

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for numbers that no search could have written."""
        if self.only_winner + self.only_baseline > self.pool:
            raise ValueError(
                f"only_winner = {self.only_winner} and only_baseline = {self.only_baseline} are more than the "
                f"pool of {self.pool}"
            )
        if len(self.examples) > self.pool:
            raise ValueError(f"{len(self.examples)} examples are more than the pool of {self.pool}")
        if len({example.example_id for example in self.examples}) < len(self.examples):
            raise ValueError("an example is there twice")
        for example in self.examples:
            if unknown := sorted(set(example.lists) - set(self.models)):
                raise ValueError(f"example {example.example_id} has lists of {unknown[0]}, which is not among models")
            longest = max((len(items) for items in example.lists.values()), default=0)
            if longest > self.listed:
                rule = f"has a list of {longest} items, where listed = {self.listed}"
                raise ValueError(f"example {example.example_id} {rule}")


@dataclass(frozen=True, eq=False)
class ModelLists:
    """A model's lists ``[N, n]`` over N examples, best first; −1 stands for what a list lacks."""

    model: str
    items: NDArray[np.int64]

    def hit(self, target: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the target is in each list, ``[N]``."""
        return (self.items == target[:, None]).any(axis=1)


def choose_examples(
    pool: Examples,
    lists: Mapping[Role, ModelLists],
    id_map: IdMap,
    seed: int,
    seen_left_out: bool,
    no_teacher: str = "",
) -> ExampleHistories:
    """Draw a few examples and tell of each what came next and what every model lists.

    Args:
        pool: the validation examples to draw from, N.
        lists: of each model over the pool; those of baseline and winner must be among them.
        id_map: titles.
        seed: decides the draw.
        seen_left_out: whether the lists hold nothing that the user had met before.
        no_teacher: see `ExampleHistories`.
    """
    found, missed = lists["winner"].hit(pool.target), ~lists["baseline"].hit(pool.target)
    only_winner, only_baseline = found & missed, ~found & ~missed
    drawn = draw(only_winner | only_baseline, seed)
    return ExampleHistories(
        models={role: one.model for role, one in lists.items()},
        listed=max(one.items.shape[1] for one in lists.values()),
        pool=len(pool),
        only_winner=int(only_winner.sum()),
        only_baseline=int(only_baseline.sum()),
        seen_left_out=seen_left_out,
        no_teacher=no_teacher,
        examples=[_described(pool, place, how, lists, id_map) for place, how in drawn.items()],
    )


def draw(differs: NDArray[np.bool_], seed: int) -> dict[int, Drawn]:
    """The places of the examples to show and how each was drawn: every one at most once.

    Args:
        differs: ``[N]``, whether exactly one of the two models has the target in its list.
        seed: decides the order in which the examples are gone through.
    """
    order = numpy_generator(seed, "example histories").permutation(len(differs))
    first, rest = order[: COUNT - DIFFERING], order[COUNT - DIFFERING :]
    differing = rest[differs[rest]][:DIFFERING]
    # where too few differ, others fill the places
    others = rest[~np.isin(rest, differing)][: DIFFERING - len(differing)]
    return {
        **{int(place): "from all" for place in (*first, *others)},
        **{int(place): "from those that differ" for place in differing},
    }


def _described(
    pool: Examples, place: int, drawn: Drawn, lists: Mapping[Role, ModelLists], id_map: IdMap
) -> ExampleHistory:
    """One example of the pool, with titles."""

    def items(ids: Iterable[int]) -> list[Item]:
        return [Item(id_map.raw_ids[item], id_map.titles[item]) for item in ids if item >= 0]

    history, length = (column[0] for column in pool.past.take(np.array([place])).dense(SHOWN))
    listed = {role: items(one.items[place]) for role, one in lists.items()}
    return ExampleHistory(
        example_id=int(pool.example_id[place]),
        drawn=drawn,
        earlier=int(pool.past.earlier[place] - length),
        history=items(history[:length]),
        target=items([pool.target[place]])[0],
        lists={role: found for role, found in listed.items() if found},
    )


def read_examples(path: Path) -> ExampleHistories:
    """What `metrics/examples.json` holds; raises ``ArtefactError`` when it is missing or damaged."""
    step = "remove it: the report is made without it"
    # titles are anybody's words: one like `result: a film` names no code
    return conform(read_json_document(path, step), ExampleHistories, path, step)
