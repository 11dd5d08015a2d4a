"""Labels are paid for once: whatever is asked next, killed in between, or damaged on the disk."""

from __future__ import annotations

import fcntl
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from src.data.examples import Examples
from src.data.teacher_outputs import TeacherOutputs, save_teacher_outputs
from src.teacher.labelling.cache import LabelCache, asked_of_a_row
from src.teacher.labelling.labels import CatalogueOutputs, Labels, item_head_labeller
from src.teacher.settings import ExportSettings, TeacherSettings
from tests.fixtures import NUM_ITEMS, cycle_data
from tests.teacher.builders import label, teacher_of
from tests.teacher.title_builders import TITLE_SETTINGS

DATA = cycle_data(train=40)
TOP_N, WIDTH = 3, 2


@dataclass
class Counting:
    """A labeller that remembers what it was asked; its labels can be told from the example's id."""

    asked: list[list[int]] = field(default_factory=list)
    catalogues: int = 0
    dies_at: int = 10**9

    def label(self, examples: Examples) -> Labels:
        if len(self.asked) + 1 == self.dies_at:
            raise KeyboardInterrupt
        ids = examples.example_id
        self.asked.append(ids.tolist())
        distances = np.arange(TOP_N, dtype=np.float32) + ids[:, None].astype(np.float32)
        return Labels(
            example_id=ids,
            candidates=(examples.target[:, None] + np.arange(TOP_N)) % NUM_ITEMS,
            scores=-distances,
            distances=distances,
            sequence_embedding=np.stack([ids, -ids], axis=1).astype(np.float32),
        )

    def catalogue_outputs(self) -> CatalogueOutputs:
        self.catalogues += 1
        embedding = np.arange(NUM_ITEMS * WIDTH, dtype=np.float32).reshape(NUM_ITEMS, WIDTH)
        return CatalogueOutputs(embedding, {"fingerprints": {"model": "m", "prompt": "p"}, "distances": "made up"})


def ask(cache: LabelCache, rows: list[int], build: Callable[[], Counting]) -> TeacherOutputs:
    return cache.outputs(DATA, np.array(rows), ExportSettings(budget=float(max(2, len(rows)))), build)


def never() -> Counting:
    raise AssertionError("the teacher was loaded for nothing")


def labels_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("labels-*.safetensors"))


def assert_right(outputs: TeacherOutputs, rows: list[int]) -> None:
    """The outputs of these rows, in this order."""
    ids = DATA.train.example_id[rows]
    assert outputs.example_id.tolist() == ids.tolist()
    assert outputs.candidates[:, 0].tolist() == DATA.train.target[rows].tolist()
    assert outputs.distances[:, 1].tolist() == (ids + 1).tolist()
    assert outputs.scores[:, 2].tolist() == (-ids - 2).tolist()
    assert outputs.sequence_embedding[:, 1].tolist() == (-ids).tolist()
    assert outputs.item_embedding[3].tolist() == [6.0, 7.0]


def test_a_larger_budget_labels_only_what_is_missing(tmp_path: Path) -> None:
    first, second = Counting(), Counting()
    assert_right(ask(LabelCache(tmp_path, shard_rows=4), [3, 8, 5], lambda: first), [3, 8, 5])
    assert_right(ask(LabelCache(tmp_path, shard_rows=4), [9, 8, 1, 3, 30, 5], lambda: second), [9, 8, 1, 3, 30, 5])
    assert first.asked == [[103, 108, 105]]
    assert second.asked == [[109, 101, 130]]
    assert (first.catalogues, second.catalogues) == (1, 0)


def test_a_smaller_budget_needs_no_teacher_at_all(tmp_path: Path) -> None:
    ask(LabelCache(tmp_path), list(range(20)), Counting)
    assert_right(ask(LabelCache(tmp_path), [7, 2], never), [7, 2])


def test_one_cache_object_serves_one_budget_after_the_other(tmp_path: Path) -> None:
    cache, labeller = LabelCache(tmp_path, shard_rows=5), Counting()
    for count in (1, 4, 12):
        assert_right(ask(cache, list(range(count)), lambda: labeller), list(range(count)))
    assert labeller.asked == [[100], [101, 102, 103], [104, 105, 106, 107, 108], [109, 110, 111]]
    assert cache.missing(DATA.train).tolist() == list(range(12, 40))


def test_a_kill_loses_the_shard_in_work_and_no_more(tmp_path: Path) -> None:
    dying, heir = Counting(dies_at=3), Counting()
    with pytest.raises(KeyboardInterrupt):
        ask(LabelCache(tmp_path, shard_rows=4), list(range(14)), lambda: dying)
    assert dying.asked == [[100, 101, 102, 103], [104, 105, 106, 107]]
    assert LabelCache(tmp_path).missing(DATA.train.take(np.arange(14))).tolist() == list(range(8, 14))
    assert_right(ask(LabelCache(tmp_path, shard_rows=4), list(range(14)), lambda: heir), list(range(14)))
    assert heir.asked == [[108, 109, 110, 111], [112, 113]]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(bytes(content))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty])
def test_a_damaged_shard_is_told_and_its_rows_are_labelled_again(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    ask(LabelCache(tmp_path, shard_rows=4), list(range(8)), Counting)
    shards = labels_in(tmp_path)
    assert len(shards) == 2
    damage(shards[0])
    heir = Counting()
    with caplog.at_level(logging.WARNING, logger="src"):
        assert_right(ask(LabelCache(tmp_path, shard_rows=4), list(range(8)), lambda: heir), list(range(8)))
    assert len(heir.asked) == 1
    assert len(heir.asked[0]) == 4
    assert "is damaged" in caplog.text
    assert shards[0].name in caplog.text
    assert labels_in(tmp_path) == shards
    assert_right(ask(LabelCache(tmp_path), list(range(8)), never), list(range(8)))


def test_a_damaged_catalogue_is_asked_for_again(tmp_path: Path) -> None:
    ask(LabelCache(tmp_path), [1], Counting)
    (catalogue,) = tmp_path.glob("catalogue-*")
    flip_a_bit(catalogue)
    heir = Counting()
    assert_right(ask(LabelCache(tmp_path), [1], lambda: heir), [1])
    assert (heir.asked, heir.catalogues) == ([], 1)


def test_what_another_process_wrote_meanwhile_is_not_labelled_again(tmp_path: Path) -> None:
    other = LabelCache(tmp_path, shard_rows=4)

    class Overtaken(Counting):
        """While its first shard is in work, another process leaves rows 6 to 9 (it holds no lock in this test)."""

        def label(self, examples: Examples) -> Labels:
            if not self.asked:
                other._add(DATA.train.take(np.arange(6, 10)), Counting())
            return super().label(examples)

    labeller = Overtaken()
    assert_right(ask(LabelCache(tmp_path, shard_rows=4), list(range(12)), lambda: labeller), list(range(12)))
    assert labeller.asked == [[100, 101, 102, 103], [104, 105, 110, 111]]


def test_rows_that_were_labelled_twice_do_no_harm(tmp_path: Path) -> None:
    first, second = LabelCache(tmp_path), LabelCache(tmp_path)
    first._add(DATA.train.take(np.array([1, 2, 3])), Counting())
    second._add(DATA.train.take(np.array([3, 2, 4])), Counting())
    assert_right(ask(LabelCache(tmp_path), [4, 3, 2, 1], Counting), [4, 3, 2, 1])


def _label_everything(folder: str, seed: int) -> int:
    labeller = Counting()
    rows = np.random.default_rng(seed).permutation(40).tolist()
    assert_right(ask(LabelCache(Path(folder), shard_rows=3), rows, lambda: labeller), rows)
    return sum(map(len, labeller.asked))


def test_two_processes_share_the_work(tmp_path: Path) -> None:
    with get_context("fork").Pool(2) as pool:
        counts = pool.starmap(_label_everything, [(str(tmp_path), 1), (str(tmp_path), 2)])
    assert sum(counts) == 40


def test_the_lock_is_held_while_the_teacher_works_and_given_back(tmp_path: Path) -> None:
    seen = []

    def free() -> bool:
        with (tmp_path / ".lock").open("w") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    class Watching(Counting):
        def label(self, examples: Examples) -> Labels:
            seen.append(free())
            return super().label(examples)

    ask(LabelCache(tmp_path), [1], Watching)
    assert seen == [False]
    assert free()


def test_a_file_system_without_locks_is_good_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(handle: object, flags: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert_right(ask(LabelCache(tmp_path), [5, 4], Counting), [5, 4])


def test_a_labeller_that_answers_for_other_rows_is_refused(tmp_path: Path) -> None:
    class Confused(Counting):
        def label(self, examples: Examples) -> Labels:
            labels = super().label(examples)
            return replace(labels, example_id=labels.example_id[::-1])

    with pytest.raises(ValueError, match="must answer for the examples"):
        ask(LabelCache(tmp_path), [1, 2], Confused)
    assert labels_in(tmp_path) == []


def test_the_manifest_tells_teacher_data_and_choice(tmp_path: Path) -> None:
    ask(LabelCache(tmp_path), [1, 2, 3], Counting)
    outputs = LabelCache(tmp_path).outputs(DATA, np.array([2]), ExportSettings(budget=0.025, select="diverse"), never)
    assert outputs.manifest["fingerprints"] == {**DATA.fingerprints(), "model": "m", "prompt": "p"}
    assert (outputs.manifest["select"], outputs.manifest["budget"]) == ("diverse", 0.025)
    assert outputs.manifest["distances"] == "made up"
    save_teacher_outputs(tmp_path / "outputs", outputs, DATA.id_map)


def test_the_key_holds_what_is_asked_of_a_row_not_which_rows(tmp_path: Path) -> None:
    def folder(settings: ExportSettings, teacher: str = "t") -> Path:
        return LabelCache.at(tmp_path, {"teacher": teacher, **asked_of_a_row(TeacherSettings(export=settings))}).folder

    usual = ExportSettings()
    assert folder(usual) == folder(replace(usual, budget=0.5, select="diverse", batch_size=8))
    assert folder(usual) != folder(replace(usual, top_n=5))
    assert folder(usual) != folder(usual, teacher="another")
    assert folder(usual).parent == tmp_path


def test_the_key_holds_the_way_of_ranking(tmp_path: Path) -> None:
    def folder(settings: TeacherSettings) -> Path:
        return LabelCache.at(tmp_path, {"teacher": "t", **asked_of_a_row(settings)}).folder

    def writer(**export: Any) -> TeacherSettings:
        return replace(TITLE_SETTINGS, export=ExportSettings(**export))

    # what is meant and what is named are the same question
    assert folder(writer()) == folder(writer(ranking="constrained")) != folder(writer(ranking="grounded"))
    assert folder(TeacherSettings()) == folder(TeacherSettings(export=ExportSettings(ranking="item_head")))
    # beams are followed by the constrained ranking alone
    assert folder(writer()) != folder(writer(beams=40))
    assert folder(writer(ranking="grounded")) == folder(writer(ranking="grounded", beams=40))
    assert folder(TeacherSettings()) == folder(TeacherSettings(export=ExportSettings(beams=40)))


def test_labels_of_a_real_teacher_do_not_depend_on_the_way_they_were_asked(llm: Path, tmp_path: Path) -> None:
    teacher, settings = teacher_of(llm), ExportSettings(budget=9.0, top_n=4, batch_size=2)
    rows = np.array([3, 4, 11, 12, 20, 21, 30, 38, 39])
    cache = LabelCache(tmp_path / "labels", shard_rows=2)
    cache.outputs(DATA, rows[::2], settings, lambda: item_head_labeller(teacher, settings))
    grown = cache.outputs(DATA, rows, settings, lambda: item_head_labeller(teacher, settings))
    whole = label(teacher, DATA, rows, settings)
    assert grown.example_id.tolist() == whole.example_id.tolist()
    assert grown.candidates.tolist() == whole.candidates.tolist()
    for name in ("scores", "distances", "sequence_embedding", "item_embedding"):
        np.testing.assert_allclose(getattr(grown, name), getattr(whole, name), rtol=1e-4, atol=1e-5)
    assert dict(grown.manifest) == dict(whole.manifest)
