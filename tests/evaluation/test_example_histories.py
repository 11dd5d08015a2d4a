"""The examples of the report: drawn by a rule that no result can change, told with titles."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import reduce
from pathlib import Path

import numpy as np
import pytest

from src.core.errors import ArtefactError
from src.evaluation.example_histories import (
    COUNT,
    DIFFERING,
    SHOWN,
    ExampleHistories,
    Item,
    ModelLists,
    choose_examples,
    draw,
    read_examples,
)
from tests.fixtures import cycle_examples, examples_of, id_map_of

NOTHING = np.zeros(40, dtype=bool)


def item(number: int) -> Item:
    return Item(f"raw_{number}", f"Title {number}")


def lists_of(*rows: list[int]) -> np.ndarray:
    return np.array(rows, dtype=np.int64)


def test_what_is_drawn_from_all_does_not_depend_on_any_result() -> None:
    from_all = [
        [place for place, how in draw(differs, seed=3).items() if how == "from all"][: COUNT - DIFFERING]
        for differs in (NOTHING, ~NOTHING, np.arange(40) % 2 == 0)
    ]
    assert from_all[0] == from_all[1] == from_all[2]
    assert len(set(from_all[0])) == COUNT - DIFFERING


def test_half_are_drawn_from_those_that_differ_and_others_fill_their_places() -> None:
    for count in (0, 2, 20):
        differs = np.isin(np.arange(40), np.arange(count))
        drawn = draw(differs, seed=1)
        differing = [place for place, how in drawn.items() if how == "from those that differ"]
        assert len(drawn) == COUNT  # a dictionary: none is there twice
        assert all(differs[place] for place in differing)
        # of the differing ones, those among the first six are shown as drawn from all
        assert len(differing) == min(DIFFERING, count - sum(differs[p] for p in list(drawn)[: COUNT - DIFFERING]))


def test_the_draw_follows_from_the_seed() -> None:
    assert draw(~NOTHING, seed=5) == draw(~NOTHING, seed=5)
    assert list(draw(~NOTHING, seed=5)) != list(draw(~NOTHING, seed=6))


def test_a_small_split_is_shown_whole() -> None:
    assert sorted(draw(np.array([True, False, True]), seed=0)) == [0, 1, 2]
    assert draw(np.zeros(0, dtype=bool), seed=0) == {}


def test_an_example_is_told_with_titles() -> None:
    pool = examples_of([[0, 1, 2], [3], [4, 5]], targets=[6, 7, 8], first_id=700)
    lists = {
        "baseline": ModelLists("baseline", lists_of([1, 6], [1, 2], [8, 1])),
        "winner": ModelLists("distilled", lists_of([6, 1], [7, 2], [2, 3])),
        "teacher": ModelLists("teacher", lists_of([6, -1], [-1, -1], [8, 6])),
    }
    found = choose_examples(pool, lists, id_map_of(12), seed=0, seen_left_out=True)
    assert (found.pool, found.listed, found.seen_left_out) == (3, 2, True)
    assert found.models == {"baseline": "baseline", "winner": "distilled", "teacher": "teacher"}
    # both find 6; the winner alone finds 7, the baseline alone 8
    assert (found.only_winner, found.only_baseline) == (1, 1)
    by_id = {example.example_id: example for example in found.examples}
    assert sorted(by_id) == [700, 701, 702]
    first = by_id[700]
    assert (first.history, first.earlier, first.target) == ([item(0), item(1), item(2)], 0, item(6))
    assert first.lists == {"baseline": [item(1), item(6)], "winner": [item(6), item(1)], "teacher": [item(6)]}
    assert set(by_id[701].lists) == {"baseline", "winner"}  # the teacher has no list of it


def test_a_long_history_is_cut_and_its_beginning_counted() -> None:
    long = examples_of([[0]], targets=[1], first_id=1)
    items = np.arange(12, dtype=np.int32)
    past = type(long.past)(items, np.array([12]), np.array([12]), padding_id=12)
    pool = type(long)(long.example_id, long.user, past, window=3, target=long.target, timestamp=long.timestamp)
    lists = {role: ModelLists(role, lists_of([2])) for role in ("baseline", "winner")}
    (example,) = choose_examples(pool, lists, id_map_of(12), seed=0, seen_left_out=False).examples  # type: ignore[arg-type]
    assert example.earlier == 12 - SHOWN
    assert example.history == [item(number) for number in range(2, 12)]


def examples_file(folder: Path) -> ExampleHistories:
    """What a search leaves, written as it writes it."""
    pool = cycle_examples(20, first_id=500)
    follow = pool.target[:, None] + np.arange(5)
    names = {"baseline": follow + 1, "winner": follow, "teacher": follow, "closed form": follow + 2}
    lists = {role: ModelLists(role, items % 12) for role, items in names.items()}
    found = choose_examples(pool, lists, id_map_of(12), seed=2, seen_left_out=True)  # type: ignore[arg-type]
    (folder / "metrics").mkdir(parents=True, exist_ok=True)
    (folder / "metrics" / "examples.json").write_text(json.dumps(asdict(found)))
    return found


def test_what_was_written_is_read(tmp_path: Path) -> None:
    assert examples_file(tmp_path) == read_examples(tmp_path / "metrics" / "examples.json")


def test_a_title_that_reads_like_code_is_a_title(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "titled_examples").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    examples_file(tmp_path / "titled_examples")
    path = tmp_path / "titled_examples" / "metrics" / "examples.json"
    path.write_text(path.read_text().replace("Title 1", "titled_examples: a film"))
    assert "titled_examples: a film" in {one.target.title for one in read_examples(path).examples}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (["pool"], -3, "pool: Input should be greater than or equal to 0"),
        (["listed"], 0, "listed: Input should be greater than or equal to 1"),
        (["only_winner"], 21, "are more than the pool of 20"),
        (["pool"], 11, "are more than the pool of 11"),
        (["examples", 0, "earlier"], -1, r"examples.0.earlier: Input should be greater"),
        (["examples", 0, "example_id"], -7, r"examples.0.example_id: Input should be greater"),
        (["listed"], 4, "has a list of 5 items, where listed = 4"),
        (["models"], {"baseline": "baseline", "winner": "winner", "teacher": "teacher"}, "has lists of closed form"),
        (["examples", 0, "history"], [{"raw_id": "1", "title": ""}] * (SHOWN + 1), r"examples.0.history"),
    ],
)
def test_numbers_that_no_search_writes_are_told(
    place: list[str | int], value: object, said: str, tmp_path: Path
) -> None:
    examples_file(tmp_path)
    path = tmp_path / "metrics" / "examples.json"
    content = json.loads(path.read_text())
    *parents, last = place
    reduce(lambda part, key: part[key], parents, content)[last] = value
    path.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=said) as caught:
        read_examples(path)
    assert "remove it" in caught.value.problems[0].next_step


def test_an_example_that_is_there_twice_is_told(tmp_path: Path) -> None:
    examples_file(tmp_path)
    path = tmp_path / "metrics" / "examples.json"
    content = json.loads(path.read_text())
    content["examples"][1] = content["examples"][0]
    path.write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match="an example is there twice"):
        read_examples(path)


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    examples_file(tmp_path)
    path = tmp_path / "metrics" / "examples.json"
    path.write_text(path.read_text().replace('"raw_id": ', '"raw": ', 1))
    with pytest.raises(ArtefactError, match=r"examples\.json"):
        read_examples(path)
