"""Students in use: equal scores, the order of the best, and folders that hold no student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from src.core.errors import ArtefactError
from src.serving.students import ModelStudent, _best, open_student
from tests.serving.finished import finished, student


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_of_equal_scores_the_lower_index_comes_first(k: int) -> None:
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0], [1.0, 3.0, 2.0, 3.0, 1.0], [5.0, 4.0, 3.0, 2.0, 1.0]])
    values, items = _best(scores, k)
    wanted = [[0, 1, 2, 3, 4], [1, 3, 2, 0, 4], [0, 1, 2, 3, 4]]
    assert items.tolist() == [row[:k] for row in wanted]
    assert torch.equal(values, scores.gather(1, items))


def test_a_students_own_folder_and_its_result_hold_the_same(tmp_path: Path) -> None:
    result = finished(tmp_path / "result", student("transitions"))
    for folder in (result, result / "best_student"):
        opened = open_student(folder)
        assert isinstance(opened, ModelStudent)
        assert (opened.name, opened.catalogue.id_map.raw_ids[:2]) == (folder.name, ("100", "101"))


def test_a_folder_without_a_student_is_refused(tmp_path: Path) -> None:
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "manifest.json").write_text('{"kind": "teacher"}')
    with pytest.raises(ArtefactError, match="holds no student"):
        open_student(tmp_path / "teacher")
