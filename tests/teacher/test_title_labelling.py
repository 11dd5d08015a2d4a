"""What a teacher that writes titles says about the whole catalogue: against exact scores, and on paper."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.core.errors import ConfigError
from src.data.candidates import draw_candidate_lists
from src.data.examples import Examples
from src.data.teacher_outputs import load_teacher_outputs, save_teacher_outputs
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings
from src.teacher.factory import save_teacher
from src.teacher.item_head.inference import TrainedItemTeacher
from src.teacher.labelling.labels import Labels, rank, teacher_outputs
from src.teacher.operations.inference import load_trained
from src.teacher.settings import ExportSettings, PromptSettings, TeacherSettings
from src.teacher.title_lm.decoding import grounding
from src.teacher.title_lm.decoding.title_tree import TitleTree
from src.teacher.title_lm.generation import title_metrics
from src.teacher.title_lm.inference import TrainedTitleTeacher
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.ranking_ways import Constrained, ranking_way
from src.teacher.title_lm.scoring import UNLISTED, ConstrainedScorer, TitleScorer, title_labeller
from tests.fixtures import NUM_ITEMS, WINDOW, cycle_data, id_map_of
from tests.teacher.builders import CPU, WIDTH, teacher_of
from tests.teacher.exact import score_all
from tests.teacher.title_builders import TITLE_SETTINGS, N, save_random_causal, title_teacher_of

ROWS = np.array([3, 4, 11, 12, 38])
DATA = cycle_data()
EXAMPLES = DATA.train.take(ROWS)
TOP_N = 4


def settings_for(ranking: str, **export: Any) -> TeacherSettings:
    given = {"top_n": TOP_N, "beams": NUM_ITEMS, "batch_size": 2, **export}
    return replace(TITLE_SETTINGS, export=ExportSettings(ranking=ranking, **given))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_causal(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def writer(folder: Path) -> TitleTeacher:
    return title_teacher_of(folder)


def exact_scores(writer: TitleTeacher, examples: Examples) -> Tensor:
    """``[n, V]``: log P of every title, one prompt at a time."""
    tree = TitleTree.of(writer.title_token_ids(), writer.prompts.end_id)
    columns, found = TensorExamples.of(examples, CPU), []
    for row in range(len(columns)):
        history, length = columns.history[row : row + 1], columns.length[row : row + 1]
        prompt = writer.prompt_embeddings(history, length)
        found.append(score_all(writer.llm, *prompt, tree, gate=writer.gate_for(history, length)))
    return torch.cat(found).detach()


def states_before_the_answer(writer: TitleTeacher, examples: Examples) -> Tensor:
    columns = TensorExamples.of(examples, CPU)
    embedded, mask = writer.prompt_embeddings(columns.history, columns.length)
    with torch.no_grad(), writer.gated(columns.history, columns.length):
        output = writer.causal_lm(inputs_embeds=embedded, attention_mask=mask, output_hidden_states=True)
    return output.hidden_states[-1][:, -1]


def same_labels(first: Labels, second: Labels) -> None:
    assert first.candidates.tolist() == second.candidates.tolist()
    for name in ("scores", "distances", "sequence_embedding"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), rtol=1e-4, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- constrained


def test_constrained_labels_are_the_exact_ranking_with_minus_log_p(writer: TitleTeacher) -> None:
    labels = title_labeller(writer, settings_for("constrained")).label(EXAMPLES)
    wanted = exact_scores(writer, EXAMPLES).sort(dim=1, descending=True)
    assert labels.example_id.tolist() == EXAMPLES.example_id.tolist()
    assert labels.candidates.tolist() == wanted.indices[:, :TOP_N].tolist()
    np.testing.assert_allclose(labels.scores, wanted.values[:, :TOP_N], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(labels.distances, -labels.scores)
    assert (labels.distances > 0).all()


@pytest.mark.parametrize("ranking", ["constrained", "grounded"])
def test_the_sequence_embedding_is_the_state_before_the_answer(writer: TitleTeacher, ranking: str) -> None:
    labels = title_labeller(writer, settings_for(ranking)).label(EXAMPLES)
    wanted = states_before_the_answer(writer, EXAMPLES)
    np.testing.assert_allclose(labels.sequence_embedding, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("ranking", ["constrained", "grounded"])
def test_a_label_does_not_depend_on_its_batch(writer: TitleTeacher, ranking: str) -> None:
    alone, together = (
        title_labeller(writer, settings_for(ranking, batch_size=size)).label(EXAMPLES) for size in (1, 5)
    )
    same_labels(alone, together)


def test_the_outputs_say_what_they_mean(writer: TitleTeacher, tmp_path: Path) -> None:
    labeller = title_labeller(writer, settings_for("auto"))
    outputs = teacher_outputs(labeller.label(EXAMPLES), labeller.catalogue_outputs(), DATA, settings_for("auto").export)
    save_teacher_outputs(tmp_path / "outputs", outputs, DATA.id_map)
    expected = {**DATA.fingerprints(), **writer.fingerprints()}
    manifest = load_teacher_outputs(tmp_path / "outputs", expected, NUM_ITEMS).manifest
    assert manifest["ranking"] == "constrained"
    assert manifest["distances"] == "-log P(title, end token | prompt)"
    assert manifest["candidates_in_the_prompt"] == f"the encoder's best {N} items outside the history"
    assert manifest["duplicate_titles"] == {"titles": 0, "items": 0, "raw_ids": []}
    assert outputs.item_embedding.shape == (NUM_ITEMS, WIDTH)


def test_targets_that_no_beam_lists_rank_last(writer: TitleTeacher) -> None:
    catalogue = ConstrainedScorer(writer, ExportSettings(beams=3), listed=3)
    columns = TensorExamples.of(EXAMPLES, CPU)
    scores = catalogue(columns.history, columns.length).logits
    assert (scores > UNLISTED).sum(dim=1).tolist() == [3] * len(ROWS)
    place = (scores > scores.gather(1, columns.target.unsqueeze(1))).sum(dim=1) + 1
    wanted = [row if row <= 3 else NUM_ITEMS for row in place.tolist()]
    assert rank(catalogue, columns, batch_size=2).tolist() == wanted
    # with the history masked its items rank behind the unlisted ones too, unless the target was seen before
    seen = [
        set(history[:length]) - {target}
        for history, length, target in zip(
            columns.history.tolist(), columns.length.tolist(), columns.target.tolist(), strict=True
        )
    ]
    masked = rank(catalogue, columns, batch_size=2, mask_history=True).tolist()
    unlisted = [row for row, place in enumerate(wanted) if place == NUM_ITEMS]
    assert unlisted
    assert [masked[row] for row in unlisted] == [NUM_ITEMS - len(seen[row]) for row in unlisted]


def test_with_a_beam_for_every_item_ranks_are_exact(writer: TitleTeacher) -> None:
    catalogue = ranking_way("constrained").scorer(writer, ExportSettings(), listed=999)
    columns, scores = TensorExamples.of(EXAMPLES, CPU), exact_scores(writer, EXAMPLES)
    own = scores.gather(1, columns.target.unsqueeze(1))
    assert rank(catalogue, columns, batch_size=5).tolist() == (scores >= own - 1e-4).sum(dim=1).tolist()


# ------------------------------------------------------------------------------------------------------------ grounded


def says(monkeypatch: pytest.MonkeyPatch, writer: TitleTeacher, item: int | None) -> None:
    """Whatever it is asked, the answer is this item's title (None: nothing at all)."""
    real = grounding.generate

    def answer(*given: Any, **named: Any) -> list[list[int]]:
        written = real(*given, **named)  # the prompts are read all the same
        return [[] if item is None else writer.title_token_ids()[item] for _ in written]

    monkeypatch.setattr(grounding, "generate", answer)


@pytest.mark.parametrize("title_tokens", [24, 2])
def test_an_answer_that_is_a_title_lies_on_it(folder: Path, monkeypatch: pytest.MonkeyPatch, title_tokens: int) -> None:
    # titles of more than two tokens are cut in prompts and item embeddings: so are answers
    names = ("red", "blue", "green", "grey")
    titles = tuple(f"{name} {place}" for place in range(3) for name in names)
    writer = title_teacher_of(
        folder,
        id_map=replace(id_map_of(NUM_ITEMS), titles=titles, texts=()),
        prompt=PromptSettings(max_tokens=160, title_tokens=title_tokens),
    )
    says(monkeypatch, writer, 3)
    labeller = title_labeller(writer, settings_for("grounded", top_n=NUM_ITEMS))
    labels, items = labeller.label(EXAMPLES), torch.from_numpy(labeller.catalogue_outputs().item_embedding)
    wanted = (items - items[3]).norm(dim=1).sort(stable=True)
    assert labels.distances[:, 0] == pytest.approx(0, abs=1e-3)
    np.testing.assert_allclose(labels.distances, np.tile(wanted.values.detach(), (len(ROWS), 1)), rtol=1e-3, atol=1e-3)
    np.testing.assert_array_equal(labels.scores, -labels.distances)
    if title_tokens == 24:
        assert labels.candidates.tolist() == [wanted.indices.tolist()] * len(ROWS)
        torch.testing.assert_close(items, writer.embed_items(NUM_ITEMS), rtol=1e-4, atol=1e-4)


def test_an_empty_answer_lies_in_the_middle(writer: TitleTeacher, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, writer, None)
    labels = title_labeller(writer, settings_for("grounded")).label(EXAMPLES)
    items = writer.embed_items(NUM_ITEMS)
    wanted = (items - items.mean(dim=0)).norm(dim=1).sort()
    np.testing.assert_allclose(labels.distances[0], wanted.values[:TOP_N].detach(), rtol=1e-3, atol=1e-3)


# ----------------------------------------------------------------------------------------------------- duplicate titles


@pytest.mark.parametrize("ranking", ["constrained", "grounded"])
def test_items_of_one_title_are_kept_apart_by_id_and_told(
    folder: Path, caplog: pytest.LogCaptureFixture, ranking: str
) -> None:
    known = id_map_of(NUM_ITEMS)
    titles = (*known.titles[:7], known.titles[2], known.titles[8], known.titles[2], *known.titles[10:])
    writer = title_teacher_of(folder, id_map=replace(known, titles=titles, texts=()))
    labeller = title_labeller(writer, settings_for(ranking, top_n=NUM_ITEMS))
    facts = labeller.catalogue_outputs().facts["duplicate_titles"]
    assert facts == {"titles": 1, "items": 3, "raw_ids": [["raw_2", "raw_7", "raw_9"]]}
    assert "titles of several items: 1, of 3 items in all (raw ids raw_2, raw_7, raw_9)" in caplog.text
    labels = labeller.label(EXAMPLES)
    for candidates, distances in zip(labels.candidates.tolist(), labels.distances.tolist(), strict=True):
        assert sorted(candidates) == list(range(NUM_ITEMS))
        first = candidates.index(2)
        assert candidates[first : first + 3] == [2, 7, 9]
        assert distances[first] == distances[first + 1] == distances[first + 2]


# ------------------------------------------------------------------------------------------------- for the pipeline


def test_answers_are_judged_over_the_lists_that_travel_with_the_teacher(folder: Path, tmp_path: Path) -> None:
    writer, half = title_teacher_of(folder), np.arange(0, len(DATA.validation), 2)
    stored = draw_candidate_lists(DATA.validation.take(half), NUM_ITEMS, N, seed=7)
    writer.candidates = {"validation": stored, "train": draw_candidate_lists(DATA.train, NUM_ITEMS, N, seed=7)}
    save_teacher(tmp_path / "teacher", writer, DATA, {})
    settings = replace(settings_for("constrained", beams=6), llm=str(folder))
    teacher = load_trained(tmp_path / "teacher", settings, DATA, CPU, seed=5)
    assert isinstance(teacher, TrainedTitleTeacher)
    lists = teacher.ranking(DATA.validation, EvaluationSettings(ks=(1,))).candidates
    assert lists is not None
    assert lists.example_id.tolist() == DATA.validation.example_id.tolist()
    drawn = draw_candidate_lists(DATA.validation, NUM_ITEMS, N, seed=5).items
    wanted = drawn.copy()
    wanted[half] = stored.items
    assert (lists.items == wanted).all()
    assert (drawn[half] != stored.items).any()


def test_a_trained_writer_ranks_and_its_answers_are_judged(folder: Path, tmp_path: Path) -> None:
    writer, settings = title_teacher_of(folder), settings_for("constrained", beams=6)
    save_teacher(tmp_path / "teacher", writer, DATA, {})
    teacher = load_trained(tmp_path / "teacher", replace(settings, llm=str(folder)), DATA, CPU, seed=5)
    assert isinstance(teacher, TrainedTitleTeacher)
    found = teacher.ranking(DATA.validation, EvaluationSettings(ks=(1, 2), mask_history=True))
    lists = draw_candidate_lists(DATA.validation, NUM_ITEMS, N, seed=5)
    assert found.candidates is not None
    assert found.candidates.fingerprint == lists.fingerprint
    columns = TensorExamples.of(DATA.validation, CPU)
    metrics = title_metrics(teacher.model, columns, torch.from_numpy(lists.items), 4)
    assert found.answer_metrics() == {
        "answer_hit_ratio_1": metrics["hit_ratio_1"],
        "valid_ratio": metrics["valid_ratio"],
    }
    exact = exact_scores(teacher.model, DATA.validation)
    catalogue = ranking_way("constrained").scorer(teacher.model, settings.export, NUM_ITEMS)
    assert found.ranks.tolist() == rank(catalogue, columns, 4, mask_history=True).tolist()
    assert found.top[:, 0].tolist() != exact.argmin(dim=1).tolist()


@pytest.mark.parametrize(
    ("ks", "mask_history", "listed"), [((1,), False, 20), ((5, 30), False, 30), ((1,), True, 20 + WINDOW)]
)
def test_beams_list_what_the_largest_cut_off_needs_beside_a_masked_history(
    writer: TitleTeacher, monkeypatch: pytest.MonkeyPatch, ks: tuple[int, ...], mask_history: bool, listed: int
) -> None:
    asked: list[int] = []

    def spy(self: Constrained, model: TitleTeacher, export: ExportSettings, count: int) -> TitleScorer:
        asked.append(count)
        return ConstrainedScorer(model, export, count)

    monkeypatch.setattr(Constrained, "scorer", spy)
    teacher = TrainedTitleTeacher(writer, settings_for("constrained"), seed=5)
    teacher.ranking(DATA.validation.take(np.arange(2)), EvaluationSettings(ks=ks, mask_history=mask_history))
    assert asked == [listed]


def test_an_item_head_writes_no_answers(llama: Path) -> None:
    teacher = TrainedItemTeacher(teacher_of(llama), ExportSettings(batch_size=4, top_n=5))
    found = teacher.ranking(DATA.validation, EvaluationSettings())
    assert found.answer_metrics() == {}
    assert found.candidates is None


def test_more_labels_than_items_are_refused(writer: TitleTeacher) -> None:
    with pytest.raises(ConfigError, match="top_n = 13: must not exceed the catalogue's 12 items"):
        title_labeller(writer, settings_for("constrained", top_n=13, beams=13))
