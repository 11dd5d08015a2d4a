"""The best items by an index: the same inner products as the student's scores, the exact best where it finds all, and
no word in favour of what was not measured."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from src.core.checkpoints import load_weights, save_weights
from src.core.errors import ArtefactError, ConfigError
from src.exp.recommend import ENTRY
from src.serving import approximate_index
from src.serving.approximate_index import IndexedStudent, as_inner_product, require_index
from src.serving.catalogue import Catalogue, padded
from src.serving.export import ExportStudentSettings, check_export, export_student
from src.serving.recommend import RecommendSettings, check_recommend
from src.serving.students import ModelStudent, as_model, open_student
from src.student.base import ClosedForm, Recommender, SequenceStudent, recent
from src.student.models import build_closed_form, student_settings
from tests.serving.finished import NUM_ITEMS, WINDOW, drawn, finished, id_map, student

pytest.importorskip("usearch")

#: a linear model that is kept in two factors, because more than ten items are too many for it
FACTORS = student_settings("linear", max_items=10, rank=5)


def with_factors(architecture: str, num_items: int = NUM_ITEMS) -> Recommender:
    """A network with such a model as its prior, looking further back than the network does."""
    model = student(architecture, num_items=num_items)
    assert isinstance(model, SequenceStudent)
    prior = build_closed_form(FACTORS, num_items, WINDOW + 3)
    model.add_prior(drawn(prior, 1), 0.7)  # type: ignore[arg-type]
    with torch.no_grad():
        assert model.prior_gain is not None
        model.prior_gain.fill_(1.3)
    return model.eval()


def histories(num_items: int = NUM_ITEMS, rows: int = 40) -> list[list[int]]:
    """Of no, some and more items than a student reads."""
    random = np.random.default_rng(0)
    return [random.integers(0, num_items, row % (2 * WINDOW)).tolist() for row in range(rows)]


MODELS = {
    **{name: lambda name=name: student(name) for name in ("transformer", "sasrec", "gru4rec", "caser")},
    "transformer, free rows": lambda: student("transformer", tied=False),
    "transformer with a prior": lambda: with_factors("transformer"),
    "gru4rec with a prior": lambda: with_factors("gru4rec"),
    "linear": lambda: drawn(build_closed_form(FACTORS, NUM_ITEMS, WINDOW)),
}


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_inner_products_are_the_students_scores(name: str) -> None:
    model = MODELS[name]()
    history, length = map(torch.from_numpy, padded(histories(), NUM_ITEMS))
    seen = recent(history, length, model.history_length, NUM_ITEMS)
    product = as_inner_product(model)
    torch.testing.assert_close(product.query(*seen) @ product.rows.T, model(*seen), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("architecture", "prior"), [("transformer", "linear"), ("transformer", "transitions")])
def test_a_prior_over_pairs_of_items_is_refused(architecture: str, prior: str) -> None:
    with pytest.raises(ConfigError, match=rf"index = '{prior}': its prior has a score for each pair.*index=none"):
        as_inner_product(student(architecture, prior))


def test_a_student_that_scores_in_its_own_way_is_refused() -> None:
    class Own(type(student("gru4rec"))):  # type: ignore[misc]
        def logits(self, representation: torch.Tensor, prior_scores: torch.Tensor | None) -> torch.Tensor:
            return torch.relu(super().logits(representation, prior_scores))

    model = student("gru4rec")
    model.__class__ = Own
    with pytest.raises(ConfigError, match="scores in a way of its own"):
        as_inner_product(model)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate_index, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="not installed → ANYO_EXTRAS=index ./env_shell/setup_env.sh"):
        require_index(student("gru4rec"))


def indexed(model: Recommender, num_items: int, effort: int) -> tuple[IndexedStudent, ModelStudent]:
    """A student with an index and without."""
    exact = ModelStudent(model, Catalogue(id_map(num_items)), "one", {})
    return IndexedStudent(exact, as_inner_product(model), effort, 1), exact


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_an_index_that_finds_everything_gives_the_exact_best(exclude_seen: bool) -> None:
    quick, exact = indexed(with_factors("transformer"), NUM_ITEMS, 200)
    history, length = padded(histories(), NUM_ITEMS)
    (items, scores), (wanted, exactly) = (one.best(history, length, 4, exclude_seen) for one in (quick, exact))
    assert items.tolist() == wanted.tolist()
    np.testing.assert_allclose(scores, exactly, rtol=1e-5, atol=1e-5)
    assert quick.as_dict(4)["recall"] == 1.0
    assert quick.as_dict(4)["of"] == 40


def test_the_recall_is_the_share_of_the_exact_best(monkeypatch: pytest.MonkeyPatch) -> None:
    quick, exact = indexed(student("transformer", num_items=3000), 3000, 1)
    history, length = padded(histories(3000), 3000)
    items, _ = quick.best(history, length, 10, False)
    wanted, _ = exact.best(history, length, 10, False)
    shared = [len(set(found) & set(best)) for found, best in zip(items.tolist(), wanted.tolist(), strict=True)]
    assert quick.as_dict(10)["recall"] == sum(shared) / 400
    assert sum(shared) < 400  # so little effort misses some
    quick.best(history, length, 10, False)
    monkeypatch.setattr(approximate_index, "COMPARED", 80)
    assert quick.compared == 80


def test_more_is_asked_for_than_there_is() -> None:
    quick, _ = indexed(student("gru4rec"), NUM_ITEMS, 200)
    history, length = padded([list(range(NUM_ITEMS - 2))], NUM_ITEMS)
    items, scores = quick.best(history, length, NUM_ITEMS, True)
    assert set(items[0][np.isfinite(scores[0])]) == {NUM_ITEMS - 2, NUM_ITEMS - 1}


# ----------------------------------------------------------------------------------------------- exports, the command


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result and its export, of a network with a prior in two factors."""
    root = tmp_path_factory.mktemp("indexed")
    settings = ExportStudentSettings(result=finished(root / "result", with_factors("gru4rec")), out=root / "export")
    export_student(settings, check_export(settings), root / "export")
    return root


def test_an_export_becomes_the_model_that_it_came_from(made: Path) -> None:
    exported, saved = (as_model(open_student(made / name), made / name).model for name in ("export", "result"))
    assert isinstance(exported, SequenceStudent)
    assert isinstance(exported.prior, ClosedForm)
    history, length = map(torch.from_numpy, padded(histories(), NUM_ITEMS))
    seen = recent(history, length, saved.history_length, NUM_ITEMS)
    assert exported.history_length == saved.history_length
    assert torch.equal(exported(*seen), saved(*seen))


@pytest.mark.parametrize("scale", [0.0, float("inf")])
def test_an_exported_scale_of_the_prior_that_is_no_factor_is_refused(scale: float, made: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    shutil.copy(made / "export" / "config.json", folder)
    weights = load_weights(made / "export" / "model.safetensors")
    save_weights(folder / "model.safetensors", {**weights, "prior_scale": torch.tensor(scale)})
    with pytest.raises(ArtefactError, match=r"prior_scale = .*must be finite and above 0"):
        as_model(open_student(made / "export"), folder)


def test_the_command_tells_the_recall_and_keeps_it(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "users.csv").write_text("user,history\na,100 102\nb,105\nc,nope\n")
    asked = ["histories=users.csv", "k=3"]
    assert ENTRY.execute([f"student={made / 'export'}", "out=exact.csv", *asked]) == 0
    capfd.readouterr()
    for name in ("export", "result"):
        by_index = [f"student={made / name}", f"out={name}.csv", "index=usearch", "index_effort=100"]
        assert ENTRY.execute([*by_index, *asked]) == 0
        shown = " ".join(capfd.readouterr().out.split())
        assert "the index finds 100.0% of the exact 3 best (2 users compared" in shown
        found, exact = pd.read_csv(f"{name}.csv"), pd.read_csv("exact.csv")
        assert found.drop(columns="score").equals(exact.drop(columns="score"))
        np.testing.assert_allclose(found["score"], exact["score"], atol=1e-4)
    record = json.loads(max((tmp_path / "result").iterdir()).joinpath("manifest.json").read_text())
    assert record["recommendations"]["index"]["recall"] == 1.0


def test_an_effort_without_an_index_is_refused(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user,history\na,100\n")
    settings = RecommendSettings(
        student=transitions, histories=tmp_path / "users.csv", out=tmp_path / "o.csv", index_effort=100, k=3
    )
    with pytest.raises(ConfigError, match="index_effort = 100: is of an approximate index"):
        check_recommend(settings)


def test_what_takes_no_index_is_refused_before_anything_is_written(transitions: Path, tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text("user,history\na,100\n")
    settings = RecommendSettings(
        student=transitions, histories=tmp_path / "users.csv", out=tmp_path / "o.csv", index="usearch", k=3
    )
    with pytest.raises(ConfigError, match="the student has a score for each pair of items"):
        check_recommend(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["users.csv"]
