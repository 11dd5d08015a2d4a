"""Students in use: equal scores, the order of the best, and folders that hold no student."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import onnx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from src.core.checksums import checksum_files
from src.core.errors import ArtefactError, ConfigError
from src.core.paths import MANIFEST, write_json
from src.serving.catalogue import Catalogue
from src.serving.students import EXPORTED, GraphStudent, ModelStudent, ServedStudent, _best, as_model, open_student
from src.student.base import SequenceStudent
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


def test_code_that_came_with_an_export_is_not_run(
    transitions: Path, served: ServedStudent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = Path(shutil.copytree(transitions, tmp_path / "theirs_students"))
    (folder / "code.py").write_text("open('ran', 'w').close()\n")
    config = json.loads((folder / "config.json").read_text())
    config["settings"]["architecture"] = "theirs_students.code:make"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="names code that came with it"):
        as_model(served, folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [[], {"name": "a"}, {"name": "a", "fingerprints": 1}])
def test_a_configuration_that_no_export_wrote_is_named(transitions: Path, tmp_path: Path, content: object) -> None:
    folder = Path(shutil.copytree(transitions, tmp_path / "edited"))
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(ArtefactError, match=r"config\.json"):
        GraphStudent(folder, threads=1)


@pytest.mark.parametrize("scale", [0.0, -1.0])
def test_a_priors_scale_is_above_0(scale: float, tmp_path: Path) -> None:
    model = student("transformer", prior="transitions", width=4, heads=1)
    assert isinstance(model, SequenceStudent)
    model.prior_scale = scale
    folder = finished(tmp_path / "r", model, width=4, heads=1)
    with pytest.raises(ArtefactError, match="prior_scale: Input should be greater than 0"):
        open_student(folder)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", b"[]", "config.json"),
        ("config.json", b'{"name": "x"}', "fingerprints: Field required"),
        ("model.onnx", b"no graph", "cannot be read"),
        ("id_map.parquet", b"", "cannot be read"),
    ],
)
def test_an_export_that_another_program_made_is_refused_whatever_its_checksums_say(
    transitions: Path, tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    folder = shutil.copytree(transitions, tmp_path / "export")
    (folder / name).write_bytes(content)
    (folder / MANIFEST).unlink()
    write_json(folder / MANIFEST, {"kind": EXPORTED, "files": checksum_files(folder)})
    with pytest.raises(ArtefactError, match=told):
        open_student(folder, threads=1)


def test_a_graph_of_something_else_is_no_student(transitions: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(transitions, tmp_path / "export")
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].name = "images"
    for node in model.graph.node:
        for place, used in enumerate(node.input):
            node.input[place] = "images" if used == "history" else used
    onnx.save(model, folder / "model.onnx")
    (folder / MANIFEST).unlink()
    write_json(folder / MANIFEST, {"kind": EXPORTED, "files": checksum_files(folder)})
    with pytest.raises(ArtefactError, match="is no student's: it takes exclude_seen, images, k, length"):
        open_student(folder, threads=1)


def test_items_without_a_title_are_no_catalogue(tmp_path: Path) -> None:
    columns = {"index": [0, 1], "raw_id": ["a", "b"], "title": ["A", None]}
    pq.write_table(pa.table(columns), tmp_path / "id_map.parquet")
    with pytest.raises(ArtefactError, match="its texts without gaps"):
        Catalogue.load(tmp_path / "id_map.parquet")
