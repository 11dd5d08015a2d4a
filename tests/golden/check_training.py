"""`train_trace`: a deterministic replay of published training steps through our objective, step and evaluator."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from src.core.training import train_step
from src.data.tensor_examples import TensorExamples
from src.distill.data_bridge import align, import_dllm2rec
from src.distill.parts import TaughtStudent
from src.distill.selection_policy import TeachAll
from src.distill.settings import DistillSettings
from src.distill.trainer_distill import DistillObjective
from src.student.datamodule import StudentData
from src.student.evaluator import evaluate_model
from src.student.objectives import main_loss
from src.student.settings import EvaluationSettings, StudentSettings
from tests.golden.check_data import load_mini_dllm2rec, teacher_folder
from tests.golden.reference_names import PROJECTION, item_input_from, our_name, our_shape, settings_of, student_from
from tests.golden.sources import FLOAT64, TRACE_LOSS, TRACE_PARAMETERS, Arrays, Leaves, Sources, require, worst_error

_CUTOFFS = (1, 5, 10, 20)
#: a parameter whose true gradient is zero: Adam turns rounding into steps, so README leaves it out
_NO_GRADIENT = ("mh_attn.linear_k.bias",)


class _Replay:
    """The negatives of the step that is being replayed."""

    def __init__(self) -> None:
        self.negatives = torch.zeros(0, 1, dtype=torch.int64)

    def draw(self, rows: Tensor) -> Tensor:
        """What the published run drew for these rows."""
        require(len(rows) == len(self.negatives), "one negative for each row")
        return self.negatives


def _distill_settings(config: Leaves) -> DistillSettings:
    return DistillSettings(
        lam=config["lam"],
        alpha=config["alpha"],
        ed_weight=config["ed_weight"],
        temperature=1.0,
        candidate_topk=config["candidate_topk"],
        beta=config["beta"],
        gamma_position=config["gamma_position"],
        gamma_confidence=config["gamma_confidence"],
        gamma_consistency=config["gamma_consistency"],
        dro_weighting="product",
        ranking_negative="sigmoid_of_one_minus",
    )


def _student_settings(config: Leaves, reference: Mapping[str, Tensor], batch: int) -> StudentSettings:
    settings = settings_of(dict(reference), config.get("num_heads", 1))
    require(config["model_name"].lower()[:3] == settings.architecture[:3], "config: model_name")
    require(config["hidden_factor"] == settings.width, "config: hidden_factor")
    require(config["batch_size"] == batch, "config: batch_size")
    return replace(
        settings,
        dropout=config["dropout_rate"],
        loss="bce",
        learning_rate=config["lr"],
        weight_decay=config["l2_decay"],
    )


def check_train_trace(sources: Sources, mini: Path, config_file: Path, init_file: Path, trace_file: Path) -> None:
    """Losses before each step, parameters and metrics after the last one."""
    config, trace, reference = sources.json(config_file), sources.arrays(trace_file), sources.arrays(init_file)
    state = reference.state(torch.float32)
    settings = _student_settings(config, state, trace["sample_rows"].shape[1])
    distill = _distill_settings(config)
    sequences = load_mini_dllm2rec(mini)
    data = StudentData.of(sequences, "cpu")
    outputs = import_dllm2rec(teacher_folder(mini), sequences)
    teaching = align(outputs, sequences.train, distill.candidate_topk, "cpu")
    student = student_from(state, settings, data.history_length)
    item_input = item_input_from(state, teaching.item_embedding, distill.ed_weight) if distill.ed_weight > 0 else None
    model = TaughtStudent(student, {} if item_input is None else {"item_input": item_input})

    replay = _Replay()
    objective = DistillObjective(model, data, teaching, settings, distill, TeachAll(), replay.draw)
    _replay_steps(trace, model, objective, replay)
    _check_parameters(trace, model)
    with tempfile.TemporaryDirectory() as folder:
        test = TensorExamples.of(sequences.test.open("golden check", Path(folder) / "opened.jsonl"), "cpu")
    for split, examples in (("val", data.validation), ("test", test)):
        _check_metrics(trace, split, evaluate_model(model, examples, EvaluationSettings(ks=_CUTOFFS)), data.num_items)


def _replay_steps(trace: Arrays, model: TaughtStudent, objective: DistillObjective, replay: _Replay) -> None:
    settings, train = objective.student_settings, objective.data.train
    optimiser = torch.optim.Adam(
        model.parameters(), settings.learning_rate, weight_decay=settings.weight_decay, fused=True
    )
    losses, mains = [], []
    model.train()
    for rows, negatives in zip(trace["sample_rows"], trace["target_neg"], strict=True):
        replay.negatives = negatives
        with torch.no_grad():
            logits = model(train.history[rows], train.length[rows])
            mains.append(main_loss(logits, train.target[rows], settings, negatives))
        losses.append(train_step(objective, optimiser, rows))
    trace.expect("f32.loss_all", torch.stack(losses).double(), TRACE_LOSS)
    trace.expect("f32.bce", torch.stack(mains).double(), TRACE_LOSS)


def _check_parameters(trace: Arrays, model: TaughtStudent) -> None:
    ours = dict(model.state_dict())
    finals = trace.names("final.")
    require(bool(finals), "the trace holds final parameters")
    for name in finals:
        reference = name.removeprefix("final.")
        want = trace[name]
        if reference in _NO_GRADIENT:
            continue
        if reference.startswith(PROJECTION):
            got = ours[f"parts.item_input.projection.{reference.removeprefix(PROJECTION)}"]
        else:
            got, want = ours[f"student.{our_name(reference)}"], our_shape(reference, want)
        require(got.shape == want.shape, f"{name}: {got.shape} is not {want.shape}")
        error = worst_error(got, want)
        require(error <= TRACE_PARAMETERS, f"{name}: error {error:.3g} exceeds {TRACE_PARAMETERS:g}")


def _check_metrics(trace: Arrays, split: str, metrics: Mapping[str, float], num_items: int) -> None:
    require(num_items >= max(_CUTOFFS), "with fewer items than k the released ranks are shifted; see dllm2rec_eval")
    for theirs, ours in (("hr", "hit_ratio"), ("ndcg", "ndcg")):
        got = torch.tensor([metrics[f"{ours}_{k}"] for k in _CUTOFFS], dtype=torch.float64)
        trace.expect(f"{split}.{theirs}", got, FLOAT64)
