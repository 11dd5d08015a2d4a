"""What every objective of a teacher promises. A user's own objective runs the same suite::

from tests.contracts.teacher_objective import TeacherObjectiveContract

class TestMyObjective(TeacherObjectiveContract):
    def settings(self) -> TeacherSettings:
        return replace(self.small(), objective="my_objective:factory")
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from src.data.examples import Examples, SequenceData
from src.data.tensor_examples import TensorExamples
from src.student.settings import EvaluationSettings
from src.teacher.backbone.model_config import blueprint, context_of, read_tokenizer
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.ilora_model import GatedTeacher
from src.teacher.interfaces import TrainingPlan
from src.teacher.objective import TeacherObjective, objective_of
from src.teacher.operations.dry_run import dry_run_loaded
from src.teacher.operations.inference import TrainedTeacher
from src.teacher.operations.model_shape import model_shape
from src.teacher.operations.resource_estimate import small_parameters
from src.teacher.settings import TeacherSettings
from src.teacher.training import TeacherRun, build_optimiser, train_teacher
from tests.fixtures import NUM_ITEMS, cycle_data
from tests.teacher.builders import CPU, SETTINGS, encoder_of
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal, title_teacher_of

EVALUATION = EvaluationSettings(ks=(1, 5))


@cache
def _model() -> tuple[TemporaryDirectory[str], Path]:
    """A decoder of two layers with a head, in a folder that lives as long as this process."""
    folder = TemporaryDirectory(prefix="contract_")
    return folder, save_random_causal(Path(folder.name))


@cache
def _run(settings: TeacherSettings, seed: int) -> TeacherRun:
    return train_teacher(settings, cycle_data(24, 6), encoder_of(), settings.llm, CPU, seed, EVALUATION)


class TeacherObjectiveContract:
    """Subclass in a test module, name it ``Test...``, and say in `settings` which objective is meant."""

    def settings(self) -> TeacherSettings:
        """Settings of the objective under test, for a small model: begin with `small`."""
        raise NotImplementedError

    @staticmethod
    def small() -> TeacherSettings:
        """Settings that train in seconds."""
        loop = replace(SETTINGS.train.loop, monitor="ndcg_5", batch_size=8)
        return replace(
            SETTINGS,
            prompt=TITLE_SETTINGS.prompt,
            train=replace(SETTINGS.train, loop=loop),
            export=replace(SETTINGS.export, beams=8, top_n=5),
        )

    # ------------------------------------------------------------------------------------------------------- the parts

    @pytest.fixture(autouse=True)
    def _one_thread(self) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    @property
    def chosen(self) -> TeacherSettings:
        """The settings, with a language model."""
        return replace(self.settings(), llm=str(_model()[1]))

    @property
    def objective(self) -> TeacherObjective:
        """What is tested."""
        return objective_of(self.settings().objective)

    @property
    def data(self) -> SequenceData:
        """A few examples."""
        return cycle_data(24, 6)

    def samples(self) -> dict[str, Examples]:
        """All of them."""
        return {"train": self.data.train, "validation": self.data.validation}

    def teacher(self) -> GatedTeacher:
        """One whose experts do something, in eval mode."""
        return title_teacher_of(Path(self.chosen.llm), self.chosen)

    def plan(self, teacher: GatedTeacher) -> TrainingPlan:
        """Its training."""
        lists = self.objective.draw_lists(self.chosen, self.samples(), NUM_ITEMS, 0)
        return self.objective.plan(teacher, self.data, self.samples(), lists, 0, EVALUATION, self.row_tokens())

    def row_tokens(self) -> Tensor:
        """Tokens of each training row."""
        prompts = self.objective.prompts(
            self.chosen, self.data.id_map, read_tokenizer(self.chosen.llm), context_of(blueprint(self.chosen.llm))
        )
        lists = self.objective.draw_lists(self.chosen, self.samples(), NUM_ITEMS, 0).get("train")
        shown = None if lists is None else torch.from_numpy(lists.of(self.data.train))
        return self.objective.row_tokens(prompts, TensorExamples.of(self.data.train, CPU), shown)

    def trained(self) -> TrainedTeacher:
        """One that has learned a little."""
        return self.objective.trained(_run(self.chosen, 0).teacher.eval(), self.chosen, 0)

    # ------------------------------------------------------------------------------------------------ before training

    def test_it_can_rank_and_says_how(self) -> None:
        assert self.objective.rankings
        assert all(self.objective.accepts_ranking(name) for name in self.objective.rankings)
        assert self.settings().ranking
        assert self.objective.card_sentence.endswith(".")

    def test_its_own_settings_are_settings(self) -> None:
        for path in self.objective.own_settings:
            value: Any = self.settings()
            for part in path.split("."):
                value = getattr(value, part)

    def test_every_training_row_has_tokens(self) -> None:
        tokens = self.row_tokens()
        assert tokens.shape == (len(self.data.train),)
        assert tokens.dtype == torch.int64
        assert tokens.min() > 0

    def test_the_estimate_counts_what_is_trained(self) -> None:
        shape = model_shape(blueprint(self.chosen.llm), self.chosen.lora)
        groups = self.teacher().parameter_groups()
        beside = sum(parameter.numel() for name, part in groups.items() if name != "experts" for parameter in part)
        assert small_parameters(self.chosen, shape.width, NUM_ITEMS, shape.embedding) == beside
        assert sum(parameter.numel() for parameter in groups["experts"]) == shape.adapter_parameters(
            self.chosen.lora.rank
        )
        assert self.objective.logits(self.chosen, shape, NUM_ITEMS) > 0
        assert (self.objective.decoded_tokens(self.chosen) > 0) == self.objective.generates

    def test_candidates_are_the_same_for_the_same_seed(self) -> None:
        first, again = (self.objective.draw_lists(self.chosen, self.samples(), NUM_ITEMS, 3) for _ in range(2))
        assert first.keys() == again.keys()
        assert all(np.array_equal(first[name].items, again[name].items) for name in first)

    # ----------------------------------------------------------------------------------------------------- the teacher

    def test_a_dry_run_leaves_everything_as_it_was(self) -> None:
        teacher = self.teacher()
        rows = TensorExamples.of(self.data.train.take(np.arange(2)), CPU)
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        drawn = torch.get_rng_state()
        dry_run_loaded(teacher, rows.history, rows.length, rows.target)
        assert torch.equal(drawn, torch.get_rng_state())
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
        assert all(parameter.grad is None for parameter in teacher.parameters())

    def test_the_loss_of_a_batch_is_that_of_its_parts(self) -> None:
        teacher = self.teacher()
        plan = self.plan(teacher)
        teacher.eval()
        whole, first, rest = (plan.objective.loss(torch.arange(*part)) for part in ((0, 5), (0, 2), (2, 5)))
        assert torch.isfinite(whole)
        torch.testing.assert_close(whole, (2 * first + 3 * rest) / 5)

    def test_the_loss_reaches_every_trained_part(self) -> None:
        teacher = self.teacher().train()
        plan = self.plan(teacher)
        optimiser = build_optimiser(teacher, self.chosen.train)
        assert {id(p) for group in optimiser.param_groups for p in group["params"]} == {
            id(parameter) for group in teacher.parameter_groups().values() for parameter in group
        }
        for _ in range(8):  # a curriculum may leave the projector out of some steps
            plan.objective.loss(torch.arange(len(self.data.train))).backward()
            plan.on_step()
        reached = {
            name: any(parameter.grad is not None and bool(parameter.grad.any()) for parameter in group)
            for name, group in teacher.parameter_groups().items()
        }
        assert all(reached.values()), reached

    def test_its_evaluation_gives_the_metrics_that_it_names(self) -> None:
        teacher = self.teacher()
        names = self.objective.metrics(EVALUATION.ks)
        assert set(self.plan(teacher).evaluate()) == set(names)
        assert self.settings().train.loop.monitor in names

    def test_its_rates_are_factors(self) -> None:
        plan = self.plan(self.teacher())
        assert all(0 <= plan.rate(step) <= 1 for step in range(3))
        assert plan.cost.shape == (len(self.data.train),)

    def test_a_saved_teacher_ranks_as_it_did(self, tmp_path: Path) -> None:
        run = _run(self.chosen, 0)
        save_teacher(tmp_path / "teacher", run.teacher, self.data, run.summary())
        loaded = load_teacher(tmp_path / "teacher", self.chosen, self.data, CPU)
        assert loaded.fingerprints() == run.teacher.fingerprints()
        again = self.objective.trained(loaded, self.chosen, 0).ranking(self.data.validation, EVALUATION)
        before = self.trained().ranking(self.data.validation, EVALUATION)
        assert torch.equal(again.ranks, before.ranks)
        assert again.answer_metrics() == before.answer_metrics()

    def test_the_same_seed_gives_the_same_teacher(self) -> None:
        _run.cache_clear()
        first = _run(self.chosen, 1).teacher.fingerprints()
        _run.cache_clear()
        assert _run(self.chosen, 1).teacher.fingerprints() == first

    # ---------------------------------------------------------------------------------------------------- what it says

    def test_it_ranks_every_example(self) -> None:
        found = self.trained().ranking(self.data.validation, EVALUATION)
        assert found.ranks.shape == (len(self.data.validation),)
        assert 1 <= found.ranks.min() <= found.ranks.max() <= NUM_ITEMS
        assert found.top.max() < NUM_ITEMS

    def test_a_row_has_the_label_that_it_has_alone(self) -> None:
        labeller, rows = self.trained().labeller(), self.data.train.take(np.arange(5))
        together = labeller.label(rows)
        alone = [labeller.label(rows.take(np.array([row]))) for row in range(5)]
        assert np.array_equal(together.example_id, rows.example_id)
        assert np.array_equal(together.candidates, np.concatenate([one.candidates for one in alone]))
        np.testing.assert_allclose(
            together.distances, np.concatenate([one.distances for one in alone]), rtol=1e-4, atol=1e-4
        )

    def test_labels_are_different_items_the_nearest_first(self) -> None:
        labels = self.trained().labeller().label(self.data.train)
        top_n = self.settings().export.top_n
        assert labels.candidates.shape == labels.distances.shape == (len(self.data.train), top_n)
        assert all(len(set(row)) == top_n for row in labels.candidates.tolist())
        assert (labels.distances >= 0).all()
        assert (np.diff(labels.distances, axis=1) >= 0).all()
        assert np.isfinite(labels.sequence_embedding).all()

    def test_the_catalogue_has_an_embedding_for_each_item_and_facts(self) -> None:
        said = self.trained().labeller().catalogue_outputs()
        assert said.item_embedding.shape[0] == NUM_ITEMS
        assert np.isfinite(said.item_embedding).all()
        assert {"ranking", "scores", "distances", "fingerprints"} <= said.facts.keys()
