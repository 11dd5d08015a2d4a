"""Items that came after training: what they score, who takes them, what is refused."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

import src.teacher.labelling.title_embeddings as title_embeddings
from src.api import Student
from src.core.checkpoints import load_weights, save_weights
from src.core.errors import ArtefactError, ConfigError, DataError
from src.core.paths import write_json
from src.core.result_files import BEST_STUDENT
from src.data.id_map import IdMap
from src.data.item_text import TextSource
from src.data.tables import from_memory
from src.distill.parts import TaughtStudent
from src.distill.terms.item_embeddings import TeacherItemInput
from src.distill.terms.item_text import ItemTextSettings, TextRows
from src.serving.export import ExportStudentSettings, check_export, export_student
from src.serving.new_items import add_items, read_new_items
from src.serving.recommend import RecommendSettings, check_recommend, recommend_file
from src.serving.students import GraphStudent, ModelStudent, model_student, open_student
from src.student.artefact import FROM_TEXT, save_student
from src.student.base import Recommender, SequenceStudent
from src.student.models import build_closed_form, student_settings
from src.student.new_items import constant_maps, takes_items
from tests.serving.finished import NUM_ITEMS, WINDOW, drawn, finished, id_map, student
from tests.serving.test_recommend import USERS

WIDTH = 7
#: of the catalogue, and of two more items: the first has the text of item 0, which training never saw
TEXTS = torch.randn(NUM_ITEMS + 2, WIDTH, generator=torch.Generator().manual_seed(3))
TEXTS[NUM_ITEMS] = TEXTS[0]
COUNTS = torch.arange(NUM_ITEMS)
SOURCE = TextSource("PATH/model", "f1", 32, "float32", "{title} ({year})")
NEW = pd.DataFrame({"item": ["900", "901"], "title": ["Alpha", "Beta"], "year": [2001, 2002]})


def embed(source: TextSource, items: IdMap) -> Tensor:
    """As the language model of `SOURCE` would; it is told apart by the texts that it is asked."""
    assert source == SOURCE
    assert items.texts == ("Alpha (2001)", "Beta (2002)")[: items.num_items]
    return TEXTS[NUM_ITEMS : NUM_ITEMS + items.num_items]


def network(tied: bool = True, both: bool = True, prior: str = "none") -> SequenceStudent:
    """A transformer with drawn numbers whose rows come from texts, folded."""
    base = student("transformer", prior, tied=tied)
    assert isinstance(base, SequenceStudent)
    parts: dict[str, Any] = {"text": TextRows(base, TEXTS[:NUM_ITEMS], COUNTS, ItemTextSettings(text_weight=0.5))}  # type: ignore[arg-type]
    if both:
        parts["input"] = TeacherItemInput(TEXTS[:NUM_ITEMS], NUM_ITEMS, base.item_embeddings.embedding_dim, 0.3)
    torch.manual_seed(5)
    for part in parts.values():
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return TaughtStudent(base, parts).fold().eval()


def linear() -> Recommender:
    """A linear model that was drawn towards texts."""
    settings = student_settings("text_linear", window=4, text_weight=0.5)
    model = drawn(build_closed_form(settings, NUM_ITEMS, WINDOW))
    width = {
        "mean": (WIDTH,),
        "directions": (NUM_ITEMS, WIDTH),
        "strength": (NUM_ITEMS,),
        "columns": (NUM_ITEMS, WIDTH),
    }
    torch.manual_seed(1)
    model.from_text = {name: torch.randn(shape) for name, shape in width.items()}
    return model


def result_of(folder: Path, model: Recommender, source: TextSource | None = SOURCE, **fields: Any) -> Path:
    """A finished result whose student tells where its embeddings come from."""
    finished(folder, model, **fields)
    settings = getattr(model, "settings", None) or student_settings("transformer", **fields)
    save_student(folder / BEST_STUDENT, model, settings, id_map(), {"id_map": "x"}, {}, source)
    return folder


def grown(model: Recommender, folder: Path, **fields: Any) -> ModelStudent:
    """The student with both new items, from disk."""
    saved = model_student(result_of(folder, model, **fields) / BEST_STUDENT, "s")
    table = from_memory("items", NEW)
    return add_items(saved, read_new_items(table, saved.catalogue, SOURCE), embed)


@pytest.mark.parametrize(
    ("part", "damage"), [("", "other"), ("", "narrow"), ("prior", "other"), ("prior", "narrow"), ("prior", "missing")]
)
def test_what_scores_new_items_is_looked_at_when_it_is_read(part: str, damage: str, tmp_path: Path) -> None:
    model = network()
    model.add_prior(linear(), 1.0)  # type: ignore[arg-type]
    saved = result_of(tmp_path / "r", model) / BEST_STUDENT
    assert takes_items(model_student(saved, "s").model)
    file, other = saved / part / FROM_TEXT, saved / ("" if part else "prior") / FROM_TEXT
    if damage == "missing":
        file.unlink()
    elif damage == "other":
        save_weights(file, load_weights(other))
    else:
        key = "columns" if part else "input"
        held = {name: value.clone() for name, value in load_weights(file).items()}
        save_weights(file, {**held, key: held[key][:3]})
    with pytest.raises(ArtefactError, match="is missing|maps of texts, such as"):
        model_student(saved, "s")


@pytest.mark.parametrize(("key", "value"), [("title_tokens", -1), ("dtype", "evil")])
def test_a_source_of_texts_that_cannot_be_is_told(key: str, value: object, tmp_path: Path) -> None:
    saved = result_of(tmp_path / "r", linear(), architecture="text_linear") / BEST_STUDENT
    manifest = json.loads((saved / "manifest.json").read_text())
    manifest["text_source"][key] = value
    write_json(saved / "manifest.json", manifest)
    with pytest.raises(ArtefactError, match=key):
        model_student(saved, "s")


def scores_of(found: ModelStudent, history: list[int], exclude: bool = False) -> np.ndarray[Any, Any]:
    """Every item's score for one history, by index."""
    items, scores = found.best(np.array([history]), np.array([len(history)]), found.catalogue.num_items, exclude)
    return np.take_along_axis(scores, np.argsort(items, axis=1), axis=1)[0]


# ------------------------------------------------------------------------------------------------------- what it scores


@pytest.mark.parametrize("prior", ["none", "linear", "popularity"])
@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_an_item_with_the_text_of_one_never_seen_scores_as_that_one(
    tied: bool, both: bool, prior: str, tmp_path: Path
) -> None:
    model = network(tied, both)
    if prior != "none":
        model.add_prior(drawn(build_closed_form(student_settings(prior), NUM_ITEMS, WINDOW), 1), 0.7)  # type: ignore[arg-type]
        assert model.prior is not None
        for buffer in model.prior.buffers():  # as of an item that nobody met
            buffer[..., 0] = -1.0 if prior == "popularity" else 0.0
            buffer[0] = buffer[0] * 0 if prior == "linear" else buffer[0]
    found = grown(model, tmp_path / "r", tied=tied)
    scores = scores_of(found, [4, 2, 9])
    assert scores[NUM_ITEMS] == pytest.approx(scores[0], abs=2e-4)
    assert abs(scores[NUM_ITEMS] - scores[NUM_ITEMS + 1]) > 1e-3
    with torch.no_grad():
        before = model(torch.tensor([[4, 2, 9]]), torch.tensor([3]))[0].numpy()
    assert np.allclose(scores[:NUM_ITEMS], before, atol=1e-5)
    # it stands for the other in a history, too
    assert np.allclose(scores_of(found, [4, NUM_ITEMS]), scores_of(found, [4, 0]), atol=2e-3)


def test_the_linear_model_scores_by_hand(tmp_path: Path) -> None:
    model = linear()
    found = grown(model, tmp_path / "r")
    around = TEXTS[NUM_ITEMS:] - model.from_text["mean"]
    direction = around / around.norm(dim=1, keepdim=True)
    decay = student_settings("text_linear").decay  # type: ignore[attr-defined]
    expected = (model.from_text["columns"][4] * decay + model.from_text["columns"][2]) @ direction[1]
    assert scores_of(found, [4, 2])[NUM_ITEMS + 1] == pytest.approx(float(expected), abs=1e-4)
    drawn_to = direction[0] @ model.from_text["directions"][7] * model.from_text["strength"][7]
    assert scores_of(found, [NUM_ITEMS])[7] == pytest.approx(float(drawn_to), abs=1e-4)
    assert scores_of(found, [NUM_ITEMS])[NUM_ITEMS] == 0


def test_where_the_prior_alone_reads_texts_the_network_has_the_mean_of_what_was_seen_least(tmp_path: Path) -> None:
    model, prior = student("transformer"), linear()
    assert isinstance(model, SequenceStudent)
    model.add_prior(prior, 0.7)  # type: ignore[arg-type]
    counts = torch.ones(NUM_ITEMS)
    counts[[3, 8]] = 0
    model.from_text = constant_maps(model, counts, WIDTH).tensors()
    found = grown(model, tmp_path / "r")
    own, alone = scores_of(found, [4, 2]), scores_of(grown(prior, tmp_path / "p"), [4, 2])
    assert model.prior_gain is not None
    share = float(model.prior_gain.detach()) * 0.7
    network_alone = own - share * alone
    assert network_alone[NUM_ITEMS] == pytest.approx((network_alone[3] + network_alone[8]) / 2, abs=1e-3)


def test_items_may_be_added_twice(tmp_path: Path) -> None:
    both = grown(linear(), tmp_path / "r")
    saved = model_student(tmp_path / "r" / BEST_STUDENT, "s")
    one_by_one = saved
    for row in (0, 1):
        new = read_new_items(from_memory("items", NEW[row : row + 1]), one_by_one.catalogue, SOURCE)
        one_by_one = add_items(one_by_one, new, lambda _, items, row=row: TEXTS[NUM_ITEMS + row : NUM_ITEMS + row + 1])  # type: ignore[misc]
    assert np.allclose(scores_of(both, [4, 2, NUM_ITEMS]), scores_of(one_by_one, [4, 2, NUM_ITEMS]), atol=1e-5)


# ------------------------------------------------------------------------------------------------ files, export, Python


@pytest.mark.parametrize("name", ["new.csv", "new.parquet", "new.jsonl"])
def test_recommend_names_items_that_came_after_training(name: str, tmp_path: Path) -> None:
    folder = result_of(tmp_path / "r", network())
    path = tmp_path / name
    if name.endswith("csv"):
        NEW.to_csv(path, index=False)
    elif name.endswith("parquet"):
        NEW.to_parquet(path)
    else:
        NEW.to_json(path, orient="records", lines=True)
    histories = pd.DataFrame({"user": ["a", "b"], "history": [["100", "900"], ["901"]]})
    histories.to_parquet(tmp_path / "h.parquet")
    settings = RecommendSettings(
        student=folder, histories=tmp_path / "h.parquet", out=tmp_path / "o.csv", k=NUM_ITEMS + 2, new_items=path,
        exclude_seen=False, unknown="refuse",
    )  # fmt: skip
    counts = recommend_file(settings, check_recommend(settings, embed))
    assert (counts.users, counts.unknown_items) == (2, 0)
    found = pd.read_csv(tmp_path / "o.csv", dtype={"item": str})
    assert set(found[found["user"] == "b"]["item"]) >= {"900", "901"}
    assert dict(zip(found["item"], found["title"], strict=True))["901"] == "Beta"


def test_an_export_has_them_folded_in_and_takes_more_later(tmp_path: Path) -> None:
    folder = result_of(tmp_path / "r", network())
    NEW[:1].to_csv(tmp_path / "new.csv", index=False)
    settings = ExportStudentSettings(result=folder, out=tmp_path / "e", new_items=tmp_path / "new.csv")
    config = export_student(settings, check_export(settings, embed), tmp_path / "e")
    assert (config["num_items"], config["items_added"], config["takes_new_items"]) == (NUM_ITEMS + 1, 1, True)
    graph = open_student(tmp_path / "e")
    assert isinstance(graph, GraphStudent)
    assert graph.catalogue.id_map.raw_ids[-1] == "900"
    later = open_student(tmp_path / "e", growing=True)
    new = read_new_items(from_memory("items", NEW[1:]), later.catalogue, SOURCE)
    found = add_items(later, new, lambda _, items: TEXTS[NUM_ITEMS + 1 :])
    whole = grown(network(), tmp_path / "w")
    assert np.allclose(scores_of(found, [1, 2]), scores_of(whole, [1, 2]), atol=1e-5)


def test_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(title_embeddings, "embed_as", lambda source, encoder, items: embed(source, items))
    base = Student.load(result_of(tmp_path / "r", network()))
    found = base.with_items(NEW)
    assert set(found.recommend([["100"]], k=NUM_ITEMS + 1)["item"]) >= {"900", "901"}
    assert "900" not in set(base.recommend([["101"]], k=NUM_ITEMS)["item"])
    with pytest.raises(ConfigError, match="does not hold the items that were added"):
        found.save(tmp_path / "copy")


# ------------------------------------------------------------------------------------------------------ what is refused


def refused_of(folder: Path, tmp_path: Path, **more: Any) -> RecommendSettings:
    NEW.to_csv(tmp_path / "new.csv", index=False)
    pd.DataFrame({"user": list(USERS), "history": [["100"]] * len(USERS)}).to_parquet(tmp_path / "h.parquet")
    return RecommendSettings(
        student=folder, histories=tmp_path / "h.parquet", out=tmp_path / "o.csv", new_items=tmp_path / "new.csv", **more
    )


def test_a_student_that_reads_no_text_is_told_so(tmp_path: Path) -> None:
    settings = refused_of(finished(tmp_path / "r", student("linear")), tmp_path)
    with pytest.raises(ConfigError, match=r"new_items = 'r': is a student that reads no text .* distill.text_weight"):
        check_recommend(settings, embed)


def test_a_graph_without_text_is_told_so(transitions: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a graph of a student that reads no text of an item"):
        check_recommend(refused_of(transitions, tmp_path), embed)


def test_a_student_of_imported_embeddings_is_told_so(tmp_path: Path) -> None:
    settings = refused_of(result_of(tmp_path / "r", network(), source=None), tmp_path)
    with pytest.raises(ConfigError, match="does not tell which language model embedded its texts"):
        check_recommend(settings, embed)


@pytest.mark.parametrize(
    ("frame", "kind", "words"),
    [
        (
            NEW.assign(item=["100", "901"]),
            DataError,
            r"new_items = '100': 1 of its items are in the student's catalogue",
        ),
        (NEW.assign(title=["Alpha", ""]), DataError, r"new_items = '901': has no title"),
        (NEW.drop(columns="title"), ConfigError, r"new_items: title = 'items': is no column; there are item, year"),
        (NEW.drop(columns="year"), ConfigError, r"dataset.item_text = 'year': is no field of the items"),
        (NEW.drop(columns="item"), ConfigError, r"new_items: columns.item = 'items': is no column"),
        (NEW[:0], DataError, r"new_items = 'items': holds no item"),
    ],
)
def test_a_table_that_breaks_a_rule(frame: pd.DataFrame, kind: Any, words: str, served: Any) -> None:
    with pytest.raises(kind, match=words):
        read_new_items(from_memory("items", frame), served.catalogue, SOURCE)


def test_another_language_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(title_embeddings, "fingerprint_llm", lambda name: "f2")
    with pytest.raises(ConfigError, match=r"encoder = 'HERE': is another language model .*FOLDER of PATH/model"):
        title_embeddings.embed_as(SOURCE, "HERE", id_map(2))


def test_embeddings_of_another_width_are_refused(tmp_path: Path) -> None:
    saved = model_student(result_of(tmp_path / "r", network()) / BEST_STUDENT, "s")
    new = read_new_items(from_memory("items", NEW), saved.catalogue, SOURCE)
    with pytest.raises(Exception, match="gives embeddings of another width than 7"):
        add_items(saved, new, lambda _, items: torch.zeros(2, 3))


def test_a_manifest_without_a_source_is_that_of_any_student(tmp_path: Path) -> None:
    folder = result_of(tmp_path / "r", network())
    assert model_student(folder / BEST_STUDENT, "s").text_source == SOURCE
    write_json(tmp_path / "x.json", asdict(replace(SOURCE, dtype="auto")))
    assert model_student(finished(tmp_path / "o", student("linear")) / BEST_STUDENT, "s").text_source is None
