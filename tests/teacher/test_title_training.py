"""Training a teacher that writes: curriculum and rates by hand, stored candidates, one trajectory, and it learns."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from src.core.checkpoints import FileCheckpoint, snapshot
from src.core.errors import ArtefactError, ConfigError, DataError, ModelError, StopTraining
from src.core.training import LoopSettings
from src.data.candidates import draw_candidate_lists
from src.data.examples import SequenceData
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.objective import objective_of
from src.teacher.preflight import check_prompts
from src.teacher.settings import GateSettings, LoraSettings, TeacherSettings, TitleSettings
from src.teacher.title_lm.curriculum import Curriculum, counters
from src.teacher.title_lm.generation import answer_all, judge_answers, title_metrics
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.preflight import check_candidates, check_writer
from src.teacher.title_lm.prompts import Question
from src.teacher.title_lm.training import TitleObjective, row_tokens, title_rate
from src.teacher.training import TeacherRun, build_optimiser, train_teacher
from tests.fixtures import NUM_ITEMS, cycle_data, cycle_examples
from tests.teacher.builders import CPU, SETTINGS, encoder_of, teacher_of
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal, title_teacher_of

EVALUATION = EvaluationSettings(ks=(5,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal LLaMA with a head of its own."""
    return save_random_causal(tmp_path_factory.mktemp("causal"))


def looped(settings: TeacherSettings = TITLE_SETTINGS, **changes: Any) -> TeacherSettings:
    """Settings with another loop."""
    return replace(settings, train=replace(settings.train, loop=replace(settings.train.loop, **changes)))


def trained(folder: Path, settings: TeacherSettings = TITLE_SETTINGS, data: Any = None, **arguments: Any) -> TeacherRun:
    """A teacher of walks through the catalogue."""
    settings = replace(settings, llm=str(folder))
    return train_teacher(
        settings, data or cycle_data(24, 6), encoder_of(), str(folder), CPU, 0, EVALUATION, **arguments
    )


def writer(run: TeacherRun) -> TitleTeacher:
    """The run's teacher."""
    assert isinstance(run.teacher, TitleTeacher)
    return run.teacher


# ---------------------------------------------------------------------------------------------- curriculum and rates


def test_the_counter_spans_the_run_or_starts_anew_in_every_epoch() -> None:
    assert counters("whole_run", 6, 3).tolist() == [1, 2, 3, 4, 5, 6]
    assert counters("as_released", 6, 3).tolist() == [1, 2, 3, 1, 2, 3]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        # Σ_{k=1}^{4000} k / 4000; in each of 4 epochs Σ_{k=1}^{1000} k / 4000
        ("whole_run", 4001 / 2),
        ("as_released", 4 * 1000 * 1001 / 2 / 4000),
        ("none", 4000),
    ],
)
def test_as_many_steps_are_hybrid_as_the_counter_says(
    kind: Literal["whole_run", "as_released", "none"], expected: float
) -> None:
    hybrid = Curriculum.of(kind, 4000, 1000, seed=5).hybrid
    # five standard deviations of a sum of independent draws, variance at most 1/4 each
    assert abs(int(hybrid.sum()) - expected) <= 5 * (4000 / 4) ** 0.5 * (kind != "none")
    assert torch.equal(hybrid, Curriculum.of(kind, 4000, 1000, seed=5).hybrid)
    if kind == "whole_run":
        assert int(hybrid[:400].sum()) < 60
        assert int(hybrid[-400:].sum()) > 340


def test_the_last_step_of_a_whole_run_is_always_hybrid() -> None:
    assert all(Curriculum.of("whole_run", 5, 5, seed).hybrid[-1] for seed in range(50))


def test_a_curriculum_knows_its_step() -> None:
    curriculum = Curriculum(torch.tensor([False, True, False]))
    seen = []
    for _ in range(4):
        seen.append(curriculum.now)
        curriculum.advance()
    assert seen == [False, True, False, False]


def test_rates_by_hand() -> None:
    settings = replace(TITLE_SETTINGS, title=TitleSettings(start_rate=0.1, minimum_rate=0.2))
    rates = [title_rate(settings, 100, 50, step) for step in (0, 1, 5, 52, 100)]
    # five steps of warm-up from 1/10; the middle of the cosine is the mean of 1 and 1/5, up to half a step
    assert rates[:3] == pytest.approx([1 / 10, 1 / 10 + 9 / 50, 1])
    assert rates[3] == pytest.approx(0.2 + 0.8 * (1 + math.cos(math.pi * 47 / 95)) / 2)
    assert rates[4] == pytest.approx(1 / 5)


def test_every_group_follows_the_schedule_each_step(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    class Watched(torch.optim.AdamW):
        def step(self, *arguments: Any, **named: Any) -> Any:
            seen.append([group["lr"] for group in self.param_groups])
            return super().step(*arguments, **named)

    monkeypatch.setattr("torch.optim.AdamW", Watched)
    settings = looped(epochs=2, batch_size=2)  # 12 steps an epoch, 24 in all: one of warm-up
    trained(folder, settings)
    assert len(seen) == 24
    for step, rates in enumerate(seen):
        factor = 0.01 if step == 0 else 0.01 + 0.99 * (1 + math.cos(math.pi * (step - 1) / 23)) / 2
        assert rates == pytest.approx([1e-2 * factor, 1e-2 * factor, 0.3e-2 * factor])


def test_the_optimiser_has_three_groups(folder: Path) -> None:
    teacher = title_teacher_of(folder)
    groups = build_optimiser(teacher, replace(TITLE_SETTINGS.train, weight_decay=0.1)).param_groups
    assert [group["weight_decay"] for group in groups] == [0.0, 0.1, 0.1]
    assert {id(p) for group in groups for p in group["params"]} == {
        id(p) for p in teacher.parameters() if p.requires_grad
    }


def test_the_projector_rests_in_text_only_steps(folder: Path) -> None:
    teacher = title_teacher_of(folder).train()
    examples = TensorExamples.of(cycle_examples(8, 100), CPU)
    candidates = torch.from_numpy(draw_candidate_lists(cycle_examples(8, 100), NUM_ITEMS, 4, 0).items)
    curriculum = Curriculum(torch.tensor([False, True]))
    objective = TitleObjective.of(teacher, examples, candidates, curriculum)
    optimiser = build_optimiser(teacher, replace(TITLE_SETTINGS.train, weight_decay=0.5))
    moved = []
    for _ in range(2):
        before = snapshot(teacher.projector)
        optimiser.zero_grad(set_to_none=True)
        objective.loss(torch.arange(8)).backward()
        optimiser.step()
        curriculum.advance()
        moved.append(any(not torch.equal(before[name], after) for name, after in snapshot(teacher.projector).items()))
    assert moved == [False, True]


# ------------------------------------------------------------------------------------------------------------ the run


def test_parts_of_a_batch_add_up_to_its_loss(folder: Path) -> None:
    teacher = title_teacher_of(folder, gate=GateSettings(kind="linear"))
    rows = cycle_examples(9, 100)
    candidates = torch.from_numpy(draw_candidate_lists(rows, NUM_ITEMS, 4, 0).items)
    objective = TitleObjective.of(teacher, TensorExamples.of(rows, CPU), candidates, Curriculum(torch.tensor([True])))
    with torch.no_grad():
        whole = objective.loss(torch.arange(9))
        parts = sum(len(part) / 9 * objective.loss(part) for part in torch.arange(9).split(4))
    torch.testing.assert_close(whole, parts)


def test_candidates_are_drawn_once_and_saved_and_read_back_identical(folder: Path, tmp_path: Path) -> None:
    data = cycle_data(24, 6)
    settings = replace(TITLE_SETTINGS, validation_rows=4)
    run = trained(folder, settings, data)
    teacher = writer(run)
    assert {split: lists.items.shape for split, lists in teacher.candidates.items()} == {
        "train": (24, 4),
        "validation": (4, 4),
    }
    again = writer(trained(folder, settings, data))
    for split, lists in teacher.candidates.items():
        assert lists.fingerprint == again.candidates[split].fingerprint
    save_teacher(tmp_path / "teacher", teacher, data, run.summary())
    loaded = load_teacher(tmp_path / "teacher", replace(TITLE_SETTINGS, llm=str(folder)), data, CPU)
    for split, lists in teacher.candidates.items():
        assert np.array_equal(loaded.candidates[split].example_id, lists.example_id)
        assert np.array_equal(loaded.candidates[split].items, lists.items)


def test_a_loaded_teacher_gives_the_same_answers_and_scores(folder: Path, tmp_path: Path) -> None:
    data = cycle_data(24, 6)
    run = trained(folder, data=data)
    teacher = writer(run)
    save_teacher(tmp_path / "teacher", teacher, data, run.summary())
    loaded = load_teacher(tmp_path / "teacher", replace(TITLE_SETTINGS, llm=str(folder)), data, CPU)
    found = {}
    for name, own in (("before", teacher), ("after", loaded)):
        examples = TensorExamples.of(data.validation, CPU)
        candidates = torch.from_numpy(own.candidates["validation"].of(data.validation))
        found[name] = (answer_all(own, examples, candidates, 4), title_metrics(own, examples, candidates, 3))
        embedded, _ = own.prompt_embeddings(examples.history, examples.length, candidates)
        found[name] += (embedded.sum().item(), own.embed_items(5).sum().item())
    assert found["before"] == found["after"]
    assert loaded.fingerprints() == teacher.fingerprints()
    metrics = run.fit.best_metrics
    assert {name: metrics[name] for name in found["after"][1]} == found["after"][1]


def test_a_saved_teacher_has_no_head_of_ours_and_a_standard_adapter(folder: Path, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    teacher = title_teacher_of(folder)
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), {})
    found = {str(file.relative_to(tmp_path / "teacher")) for file in (tmp_path / "teacher").rglob("*.safetensors")}
    assert found == {
        "adapter/adapter_model.safetensors",
        "encoder/model.safetensors",
        "gate.safetensors",
        "projector.safetensors",
    }
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), str(tmp_path / "teacher/adapter"))
    ids = torch.tensor([[5, 9, 70, 12]])
    with torch.no_grad(), teacher.scope(torch.full((1, 4), 1 / 4)):
        wanted = teacher.llm(input_ids=ids).logits
        torch.testing.assert_close(plain.eval()(input_ids=ids).logits, wanted)


def test_the_kinds_of_teacher_are_not_taken_for_each_other(folder: Path, llama: Path, tmp_path: Path) -> None:
    save_teacher(tmp_path / "writer", title_teacher_of(folder), cycle_data(), {})
    save_teacher(tmp_path / "ranker", teacher_of(llama), cycle_data(), {})
    with pytest.raises(ArtefactError, match="has objective title_lm; item_ce is needed"):
        load_teacher(tmp_path / "writer", replace(SETTINGS, llm=str(folder)), cycle_data(), CPU)
    with pytest.raises(ArtefactError, match="has objective item_ce; title_lm is needed"):
        load_teacher(tmp_path / "ranker", replace(TITLE_SETTINGS, llm=str(llama)), cycle_data(), CPU)


def test_candidates_of_another_catalogue_are_refused(folder: Path, tmp_path: Path) -> None:
    run = trained(folder)
    save_teacher(tmp_path / "teacher", run.teacher, cycle_data(24, 6), {})
    (tmp_path / "teacher" / "candidates" / "train" / "items.npy").unlink()
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_teacher(tmp_path / "teacher", replace(TITLE_SETTINGS, llm=str(folder)), cycle_data(24, 6), CPU)


@pytest.mark.parametrize("answer", ["corrected", "as_released"])
def test_a_teacher_that_knows_three_rows_by_heart_answers_them(tmp_path: Path, answer: Any) -> None:
    data = three_rows()
    settings = replace(
        looped(epochs=20, batch_size=3, patience=20),
        title=TitleSettings(candidates=4, curriculum="none", answer=answer),
        gate=GateSettings(kind="linear"),
        lora=LoraSettings(rank=16, experts=4, alpha=32.0),
    )
    run = trained(save_random_causal(tmp_path, deviation=0.2, hidden_size=64, intermediate_size=128), settings, data)
    teacher = writer(run)
    assert run.fit.history[-1]["train_loss"] < 0.1 * run.fit.history[0]["train_loss"]
    assert run.fit.best_metrics["hit_ratio_1"] == run.fit.best_metrics["valid_ratio"] == 1.0
    examples = TensorExamples.of(data.validation, CPU)
    candidates = torch.from_numpy(teacher.candidates["validation"].of(data.validation))
    answers = answer_all(teacher, examples, candidates, 2)
    assert answers == [data.id_map.titles[item] for item in data.validation.target]
    assert answers == [answer for row in range(3) for answer in answer_all(*one(teacher, examples, candidates, row), 1)]


def three_rows() -> SequenceData:
    """Three training examples, which are judged as well; no title is a part of another."""
    data = cycle_data(3, 3)
    titles = (
        "Amber",
        "Birch",
        "Copper",
        "Delta",
        "Ember",
        "Fern",
        "Gilt",
        "Harbour",
        "Index",
        "Juniper",
        "Kiln",
        "Moth",
    )
    return replace(data, validation=data.train, id_map=replace(data.id_map, titles=titles, texts=()))


def one(teacher: TitleTeacher, examples: TensorExamples, candidates: torch.Tensor, row: int) -> Any:
    """A single example."""
    columns = (examples.history, examples.length, examples.target, examples.example_id)
    return teacher, TensorExamples.of_rows(*(column[[row]] for column in columns)), candidates[[row]]


def test_equal_seeds_give_equal_teachers_and_micro_batches_the_same_first_loss(folder: Path) -> None:
    first, again = (trained(folder) for _ in range(2))
    states = snapshot(first.teacher), snapshot(again.teacher)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    # the convolutional router's batch statistics would differ between a batch and its parts
    linear = replace(TITLE_SETTINGS, gate=GateSettings(kind="linear"))
    whole, parts = trained(folder, linear), trained(folder, looped(linear, micro_batch_size=3))
    assert parts.fit.history[0]["train_loss"] == pytest.approx(whole.fit.history[0]["train_loss"], rel=1e-4)


def test_a_killed_training_goes_on_to_the_same_teacher(folder: Path, tmp_path: Path) -> None:
    settings = looped(epochs=3)
    whole = trained(folder, settings)
    checkpoint = FileCheckpoint(tmp_path / "checkpoint", "one")

    class Killed(Exception):
        pass

    def kill(epoch: int, metrics: Mapping[str, float]) -> None:
        if epoch == 2:
            raise Killed

    with pytest.raises(Killed):
        trained(folder, settings, report=kill, checkpoint=checkpoint)
    resumed = trained(folder, settings, checkpoint=checkpoint)
    wanted, found = snapshot(whole.teacher), snapshot(resumed.teacher)
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert [epoch["train_loss"] for epoch in resumed.fit.history] == [e["train_loss"] for e in whole.fit.history]


def test_a_report_can_stop_the_training(folder: Path) -> None:
    def stop(epoch: int, metrics: Mapping[str, float]) -> None:
        assert set(metrics) == {"train_loss", "hit_ratio_1", "valid_ratio", "hit_ratio_1_of_valid"}
        raise StopTraining

    assert trained(folder, looped(epochs=3), report=stop).fit.epochs == 1


def test_the_summary_tells_how_it_went(folder: Path) -> None:
    summary = trained(folder).summary()
    assert sorted(summary["parameters"]) == ["experts", "gate", "projector"]
    assert (summary["different_rows"], summary["validation_rows"], summary["start_rows"]) == (24, 6, 0)
    assert 0 <= summary["validation"]["hit_ratio_1"] <= summary["validation"]["valid_ratio"] <= 1


def test_ratios_of_answers_by_hand() -> None:
    titles = ["Heat", "Alien", "Brazil"]
    answers, target = ["heat", "Alien", "Heat and Alien", ""], torch.tensor([0, 2, 0, 1])
    found = judge_answers(answers, target, torch.tensor([[0, 1], [2, 1], [0, 1], [1, 2]]), titles)
    assert found == (2 / 4, 1 / 2, 1 / 4)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_another_monitor_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"monitor = 'ndcg_20' must be hit_ratio_1"):
        TeacherSettings(objective="title_lm")


def test_the_ranking_objective_keeps_its_monitors(folder: Path) -> None:
    settings = replace(looped(SETTINGS, monitor="hit_ratio_1"), llm=str(folder))
    with pytest.raises(ConfigError, match="must be one of recall_5"):
        trained(folder, settings)


@pytest.mark.parametrize("n", [13, 12])
def test_more_candidates_than_items_are_refused_before_the_model_is_read(n: int) -> None:
    settings = replace(TITLE_SETTINGS, title=TitleSettings(candidates=n))
    with pytest.raises(DataError, match=f"candidates = {n}"):
        trained(Path("/no/model"), settings)
    rule = "exceeds the catalogue's 12 items" if n == 13 else "leaves 7 of 12 items"
    with pytest.raises(DataError, match=rule):
        check_candidates(settings, cycle_data())


def test_everything_is_looked_at_before_training(folder: Path, bert: Path) -> None:
    check_prompts(replace(TITLE_SETTINGS, llm=str(folder)), cycle_data())
    check_writer(replace(TITLE_SETTINGS, llm=str(folder)))
    objective_of("item_ce").check_llm(replace(SETTINGS, llm=str(bert)))
    with pytest.raises(ModelError, match="is an encoder"):
        check_writer(replace(TITLE_SETTINGS, llm=str(bert)))
    data = cycle_data()
    endless = replace(data.id_map, titles=(*data.id_map.titles[:-1], "Title " * 300), texts=())
    with pytest.raises(ConfigError, match=r"title of raw_11 .*the language model reads 256"):
        check_prompts(replace(TITLE_SETTINGS, llm=str(folder)), replace(data, id_map=endless))
    with pytest.raises(DataError, match="title of raw_11"):
        trained(folder, data=replace(data, id_map=endless))


def test_an_encoder_is_refused_before_training(bert: Path) -> None:
    with pytest.raises(ModelError, match="needs|is an encoder"):
        trained(bert)


def test_a_tiny_model_writes_and_travels_with_its_teacher(tmp_path: Path) -> None:
    from src.teacher.backbone.tiny_llm import build_tiny_llm
    from src.teacher.settings import TinySettings

    data = cycle_data(24, 6)
    tiny = TinySettings(width=16, heads=2, vocabulary=300, context=256, loop=LoopSettings(
        epochs=1, batch_size=8, patience=1, monitor="log_likelihood"
    ))  # fmt: skip
    build_tiny_llm(tmp_path / "llm", tiny, data, 0, CPU)
    settings = replace(TITLE_SETTINGS, llm="tiny", tiny=tiny)
    run = train_teacher(settings, data, encoder_of(), str(tmp_path / "llm"), CPU, 0, EVALUATION)
    save_teacher(tmp_path / "teacher", run.teacher, data, run.summary())
    loaded = load_teacher(tmp_path / "teacher", settings, data, CPU)
    examples, lists = TensorExamples.of(data.validation, CPU), writer(run).candidates["validation"]
    candidates = torch.from_numpy(lists.of(data.validation))
    assert answer_all(loaded, examples, candidates, 3) == answer_all(writer(run), examples, candidates, 6)


def test_a_rows_cost_is_the_length_of_its_prompt_with_its_answer(folder: Path) -> None:
    teacher = title_teacher_of(folder)
    data = cycle_data(24, 6)
    lists = draw_candidate_lists(data.train, NUM_ITEMS, 4, 0)
    train, candidates = TensorExamples.of(data.train, CPU), torch.from_numpy(lists.of(data.train))
    batch = teacher.prompts.answered(Question(train.history, train.length, candidates), train.target)
    assert row_tokens(teacher.prompts, train, candidates).tolist() == batch.prompts.attention_mask.sum(dim=1).tolist()


def test_a_teacher_that_writes_trains_on_grouped_batches(folder: Path) -> None:
    settings = replace(TITLE_SETTINGS, train=replace(TITLE_SETTINGS.train, group_by_length=True))
    found = [trained(folder, settings).fit.history for _ in range(2)]
    assert found[0] == found[1] != trained(folder).fit.history
