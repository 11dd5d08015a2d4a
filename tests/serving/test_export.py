"""An exported folder: what is in it, that its card can be run, and that a changed one is refused."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from safetensors.torch import load_file

from src.core.errors import ArtefactError, ConfigError, DamagedArtefact
from src.data.dataset import load_dataset
from src.exp.export import ENTRY
from src.serving.catalogue import Catalogue, padded
from src.serving.export import ExportStudentSettings, all_weights, check_export, export_student, served_ndcg
from src.serving.metrics_table import metrics_table
from src.serving.results import StudentResult
from src.serving.students import GraphStudent, open_student
from tests.serving.finished import NUM_ITEMS, WORLD, finished, id_map, student

FILES = {"README.md", "config.json", "id_map.parquet", "manifest.json", "model.onnx", "model.safetensors"}


def test_an_export_holds_everything_that_it_promises(transitions: Path) -> None:
    assert {path.name for path in transitions.iterdir()} == FILES
    config = json.loads((transitions / "config.json").read_text())
    assert (config["name"], config["architecture"], config["num_items"]) == ("transitions", "transitions", NUM_ITEMS)
    assert config["largest_difference"] <= 1e-4
    assert config["source"] == {"kind": "tune_distill", "finished": "2026-01-01T00:00:00", "seed": 7, "revision": "abc"}
    catalogue = Catalogue.load(transitions / "id_map.parquet")
    assert catalogue.id_map == id_map()
    assert catalogue.counts is None
    assert set(load_file(transitions / "model.safetensors")) == {"weight"}
    inputs = [value.name for value in onnx.load(transitions / "model.onnx").graph.input]
    assert inputs == ["history", "length", "k", "exclude_seen"]


def test_the_card_tells_what_was_measured_and_leaves_the_licence_to_its_owner(transitions: Path) -> None:
    card = (transitions / "README.md").read_text()
    assert "| distilled | test | 60 | 0.5000 | 0.1250 |" in card
    assert "# license:" in card
    assert "Recall@20 | NDCG@20" in card


def test_a_damaged_comparison_is_named() -> None:
    row = {"model": "baseline", "split": "test", "examples": "10", "ndcg_20": "0.24"}
    assert metrics_table([row]).endswith("| baseline | test | 10 | 0.2400 |")
    with pytest.raises(ArtefactError, match=r"comparison.csv ndcg_20 = 'much': is no number"):
        metrics_table([{**row, "ndcg_20": "much"}])
    with pytest.raises(ArtefactError, match="lacks the columns split"):
        metrics_table([{name: value for name, value in row.items() if name != "split"}])


def test_the_example_of_the_card_runs_with_nothing_of_this_project(transitions: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (transitions / "README.md").read_text(), flags=re.DOTALL)
    assert len(code.splitlines()) <= 12
    shutil.copytree(transitions, tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-I", "-c", f"import sys\nsys.modules['torch'] = sys.modules['src'] = None\n{code}"],
        cwd=tmp_path / "copy", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert len(lines) == 5
    wanted = open_student(transitions).recommend([0, 1], 5, True)
    assert lines == [[one.item, one.title, f"{one.score:.3f}"] for one in wanted]


@pytest.mark.parametrize("name", sorted(FILES - {"manifest.json"}))
def test_a_changed_export_is_refused(transitions: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "export"
    shutil.copytree(transitions, folder)
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(DamagedArtefact, match="checksum"):
        open_student(folder)


def test_a_manifest_without_checksums_is_refused(transitions: Path, tmp_path: Path) -> None:
    shutil.copytree(transitions, tmp_path / "export")
    (tmp_path / "export" / "manifest.json").write_text('{"kind": "exported_student"}')
    with pytest.raises(ArtefactError, match="does not tell"):
        open_student(tmp_path / "export")


def test_all_weights_name_the_priors() -> None:
    weights = all_weights(student("transformer", prior="transitions", width=4, heads=1))
    assert weights["prior.weight"].shape == (NUM_ITEMS, NUM_ITEMS)
    assert float(weights["prior_scale"]) == pytest.approx(0.7)
    assert float(weights["prior_gain"]) == pytest.approx(1.3)


# ------------------------------------------------------------------------------------------------- with its data


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result whose data can be read again."""
    data = load_dataset(WORLD)
    model = student("transformer", num_items=data.num_items, width=16)
    folder = tmp_path_factory.mktemp("world") / "result"
    return finished(folder, model, data.id_map, data.fingerprints(), WORLD, width=16)


def test_eight_bits_cost_what_the_card_says(result: Path, tmp_path: Path) -> None:
    settings = ExportStudentSettings(result=result, out=tmp_path / "small", quantise="int8")
    plan = check_export(settings)
    config = export_student(settings, plan, tmp_path / "small")
    data = StudentResult.read(result).load_data()
    opened = open_student(tmp_path / "small")
    assert isinstance(opened, GraphStudent)
    told = config["quantisation"]
    assert told["int8"] == served_ndcg(opened.best, data.validation, 20)
    assert told["float32"] > 0
    assert told["change"] == told["int8"] / told["float32"] - 1
    assert "8-bit" in (tmp_path / "small" / "README.md").read_text()
    kinds = {node.op_type for node in onnx.load(tmp_path / "small" / "model.onnx").graph.node}
    assert "MatMulInteger" in kinds
    assert opened.catalogue.counts is not None
    assert opened.catalogue.counts.tolist() == data.item_counts.tolist()


def test_ndcg_is_the_mean_gain_of_the_place() -> None:
    data = load_dataset(WORLD)
    target = data.validation.target

    def best(history: Any, length: Any, k: int, exclude: bool) -> tuple[np.ndarray, None]:
        rows = np.tile(np.arange(k), (len(history), 1)) + 100
        first = best.seen  # type: ignore[attr-defined]
        rows[:, 1] = target[first : first + len(history)]
        best.seen = first + len(history)  # type: ignore[attr-defined]
        return rows, None

    best.seen = 0  # type: ignore[attr-defined]
    assert served_ndcg(best, data.validation, 3) == pytest.approx(1 / np.log2(3))


# ------------------------------------------------------------------------------------------------------- bad input


def problems(settings: ExportStudentSettings) -> list[str]:
    """The fields that are wrong."""
    with pytest.raises((ConfigError, ArtefactError)) as caught:
        check_export(settings)
    return [problem.field for problem in caught.value.problems]


def test_what_cannot_be_exported_is_told_before_anything_is_written(result: Path, tmp_path: Path) -> None:
    assert problems(ExportStudentSettings()) == ["result"]
    assert problems(ExportStudentSettings(result=tmp_path / "none")) == ["folder"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("kept")
    assert problems(ExportStudentSettings(result=result, out=tmp_path / "taken")) == ["out"]
    assert problems(ExportStudentSettings(result=result, push_to_hub="name")) == ["push_to_hub"]
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    (teacher / "manifest.json").write_text("{}")
    assert problems(ExportStudentSettings(result=teacher)) == ["result"]
    without_data = finished(tmp_path / "bare", student("popularity"))
    assert problems(ExportStudentSettings(result=without_data, quantise="int8")) == ["quantise"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bare", "taken", "teacher"]


def test_other_data_than_the_student_was_trained_on_is_refused(tmp_path: Path) -> None:
    data = load_dataset(WORLD)
    prints = {**data.fingerprints(), "split": "another"}
    folder = finished(tmp_path / "r", student("popularity", num_items=data.num_items), data.id_map, prints, WORLD)
    with pytest.raises(ArtefactError, match="another split"):
        StudentResult.read(folder).load_data()


def test_code_that_came_with_a_result_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    folder = finished(tmp_path / "theirs_export", student("popularity"))
    (folder / "code.py").write_text("open('ran', 'w').close()\n")
    (folder / "settings.yaml").write_text("dataset: {adapter: 'theirs_export.code:load'}\n")
    with pytest.raises(ConfigError, match="names code that came with it"):
        StudentResult.read(folder).load_data()
    assert not (tmp_path / "ran").exists()


def test_the_command_ends_with_code_2_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert ENTRY.execute(["result=nowhere"]) == 2
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------------- the hub


def test_a_folder_is_pushed_as_a_private_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.serving.hub import push

    called: list[tuple[str, Any, Any]] = []
    hub = SimpleNamespace(
        create_repo=lambda *args, **more: called.append(("create", args, more)),
        upload_folder=lambda **more: called.append(("upload", (), more)),
    )
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub)
    push(tmp_path, "me/mine")
    assert called == [
        ("create", ("me/mine",), {"repo_type": "model", "private": True, "exist_ok": True}),
        ("upload", (), {"repo_id": "me/mine", "folder_path": str(tmp_path), "repo_type": "model"}),
    ]


def test_a_refusal_of_the_hub_names_the_next_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from src.serving.hub import push

    def refuse(*args: Any, **more: Any) -> None:
        raise OSError("401 unauthorised")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(create_repo=refuse))
    with pytest.raises(ConfigError, match="log in"):
        push(tmp_path, "me/mine")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match="needs the package"):
        push(tmp_path, "me/mine")


def test_padded_histories_are_never_without_a_place() -> None:
    history, length = padded([[]], 9)
    assert (history.tolist(), length.tolist()) == ([[9]], [0])
