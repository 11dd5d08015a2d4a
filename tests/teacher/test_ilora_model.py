"""The whole teacher: what it trains, what it leaves alone, and what its outputs depend on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from src.teacher.ilora_model import ILoRATeacher
from src.teacher.prompts import PromptBatch
from src.teacher.settings import GateSettings
from tests.fixtures import NUM_ITEMS, WINDOW
from tests.teacher.builders import SETTINGS, WIDTH, teacher_of

HISTORY = torch.tensor(
    [[0, 1, 2, 3, 4], [11, NUM_ITEMS, NUM_ITEMS, NUM_ITEMS, NUM_ITEMS], [5, 6, 7, NUM_ITEMS, NUM_ITEMS]]
)
LENGTH = torch.tensor([5, 1, 3])


def test_outputs_have_their_shapes(llm: Path) -> None:
    teacher = teacher_of(llm)
    logits, sequence_embedding, gate_weights = teacher(HISTORY, LENGTH)
    assert logits.shape == (3, NUM_ITEMS)
    assert sequence_embedding.shape == (3, WIDTH)
    assert gate_weights.shape == (3, 4)
    torch.testing.assert_close(gate_weights.sum(dim=1), torch.ones(3))
    assert teacher.embed_items(5).shape == (NUM_ITEMS, WIDTH)


@pytest.mark.parametrize("rows", [[0], [1], [2], [2, 0], [1, 1, 2]])
def test_a_sequences_output_does_not_depend_on_its_batch(llm: Path, rows: list[int]) -> None:
    teacher = teacher_of(llm)
    together, apart = teacher(HISTORY, LENGTH), teacher(HISTORY[rows], LENGTH[rows])
    for whole, part in zip(together, apart, strict=True):
        torch.testing.assert_close(whole[rows], part, rtol=1e-5, atol=1e-5)


def test_item_embeddings_do_not_depend_on_their_batch_or_the_experts(llm: Path) -> None:
    teacher = teacher_of(llm)
    torch.testing.assert_close(teacher.embed_items(1), teacher.embed_items(NUM_ITEMS), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(teacher.embed_items(4), teacher_of(llm, awake=False).embed_items(4))


def test_titles_that_do_not_fit_into_memory_at_once_are_embedded_in_parts(
    llm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = teacher_of(llm)
    whole, real, asked = teacher.embed_items(NUM_ITEMS), teacher.embed_tokens, list[int]()

    def hungry(prompts: PromptBatch) -> Tensor:
        asked.append(len(prompts.token_ids))
        if asked[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        return real(prompts)

    monkeypatch.setattr(teacher, "embed_tokens", hungry)
    torch.testing.assert_close(teacher.embed_items(NUM_ITEMS), whole, rtol=1e-5, atol=1e-5)
    # 12 titles: 12, 6 and then 3 at once
    assert (NUM_ITEMS, asked) == (12, [12, 6, 3, 3, 3, 3])


def test_the_gate_reaches_the_outputs(llm: Path) -> None:
    teacher = teacher_of(llm, gate=GateSettings(kind="linear"))
    before = teacher(HISTORY, LENGTH)
    with torch.no_grad():
        teacher.gate.linear.weight.mul_(-3)
    after = teacher(HISTORY, LENGTH)
    assert (before.gate_weights - after.gate_weights).abs().max() > 0.05
    assert (before.sequence_embedding - after.sequence_embedding).abs().max() > 1e-3


def test_each_placeholder_holds_its_items_projected_embedding_and_words_their_own(llm: Path) -> None:
    teacher = teacher_of(llm)
    prompts = teacher.prompts(HISTORY, LENGTH)
    embedded = teacher.embed_tokens(prompts)
    words = teacher.llm.get_base_model().get_input_embeddings().weight
    for row in range(len(HISTORY)):
        for place in range(prompts.token_ids.shape[1]):
            item = int(prompts.items[row, place])
            if item == NUM_ITEMS:
                wanted = words[prompts.token_ids[row, place]]
            else:
                wanted = teacher.projector(teacher.encoder.item_embeddings.weight[item])
            torch.testing.assert_close(embedded[row, place], wanted)


def test_a_placeholder_beyond_the_embedding_table_is_no_lookup(llm: Path) -> None:
    teacher = teacher_of(llm)
    table = teacher.llm.get_base_model().get_input_embeddings()
    rows = len(table.weight)
    teacher.prompts.pieces[teacher.prompts.pieces == teacher.prompts.placeholder_id] = rows + 7
    teacher.prompts.placeholder_id = rows + 7
    assert torch.isfinite(teacher(HISTORY, LENGTH).logits).all()
    assert len(table.weight) == rows, "the language model's table is not resized"


def test_the_recommenders_embeddings_reach_the_output(llm: Path) -> None:
    teacher = teacher_of(llm)
    before = teacher(HISTORY, LENGTH)
    with torch.no_grad():
        teacher.projector.outer.weight.mul_(-1.0)
    assert (teacher(HISTORY, LENGTH).logits - before.logits).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["convolutional", "linear", "mlp"])
def test_exactly_experts_gate_projector_and_head_receive_gradients(llm: Path, kind: str) -> None:
    teacher = teacher_of(llm, gate=GateSettings(kind=kind))  # type: ignore[arg-type]
    teacher.train()
    nn.functional.cross_entropy(teacher(HISTORY, LENGTH).logits, torch.tensor([1, 2, 3])).backward()
    moved = {name for name, value in teacher.named_parameters() if value.grad is not None and value.grad.any()}
    expected = {
        name
        for name, _ in teacher.named_parameters()
        if ".lora_A." in name or ".lora_B." in name or name.split(".")[0] in ("gate", "projector", "head")
    }
    assert moved == expected
    assert {name for name, value in teacher.named_parameters() if value.requires_grad} == expected
    groups = teacher.parameter_groups()
    assert sorted(groups) == ["experts", "gate", "head", "projector"]
    assert sum(len(group) for group in groups.values()) == len(expected)


def test_a_step_changes_no_frozen_weight(llm: Path) -> None:
    teacher = teacher_of(llm)
    before = {name: value.clone() for name, value in teacher.named_parameters() if not value.requires_grad}
    optimiser = torch.optim.SGD(teacher.parameters(), lr=1.0)
    teacher.train()
    nn.functional.cross_entropy(teacher(HISTORY, LENGTH).logits, torch.tensor([1, 2, 3])).backward()
    optimiser.step()
    after = dict(teacher.named_parameters())
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def _linear_gate(folder: Path) -> ILoRATeacher:
    return teacher_of(folder, gate=GateSettings(kind="linear"))


def test_the_encoder_stays_in_eval_mode(llama: Path) -> None:
    teacher = _linear_gate(llama).train()
    assert not any(module.training for module in teacher.encoder.modules())
    assert teacher.gate.training
    assert teacher.llm.training
    first, second = teacher.gate_weights(HISTORY, LENGTH), teacher.gate_weights(HISTORY, LENGTH)
    assert torch.equal(first, second), "the encoder's dropout of 0.5 must not reach the gate"


def test_training_mode_adds_no_dropout_of_the_frozen_language_model(llm: Path) -> None:
    teacher = _linear_gate(llm)
    torch.testing.assert_close(teacher.train()(HISTORY, LENGTH).logits, teacher.eval()(HISTORY, LENGTH).logits)


def test_experts_at_their_start_change_nothing(llm: Path) -> None:
    teacher = teacher_of(llm, awake=False)
    prompts = teacher.prompts(HISTORY, LENGTH)
    with teacher.llm.disable_adapter():
        base = teacher.llm(
            inputs_embeds=teacher.embed_tokens(prompts), attention_mask=prompts.attention_mask
        ).last_hidden_state
    mask = prompts.attention_mask.bool()
    if teacher.language.is_decoder:
        wanted = torch.stack([states[real][-1] for states, real in zip(base, mask, strict=True)])
    else:
        wanted = torch.stack([states[real].mean(dim=0) for states, real in zip(base, mask, strict=True)])
    torch.testing.assert_close(teacher(HISTORY, LENGTH).sequence_embedding, wanted, rtol=1e-5, atol=1e-5)


def test_whole_teachers_gradients_are_the_same_with_checkpointing(llm: Path) -> None:
    found = []
    for checkpointing in (False, True):
        teacher = teacher_of(llm, replace(SETTINGS, gradient_checkpointing=checkpointing)).train()
        nn.functional.cross_entropy(teacher(HISTORY, LENGTH).logits, torch.tensor([1, 2, 3])).backward()
        found.append({name: value.grad for name, value in teacher.named_parameters() if value.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])


def test_fingerprints_follow_the_trained_weights_and_the_prompt(llama: Path) -> None:
    teacher = teacher_of(llama)
    before = dict(teacher.fingerprints())
    assert dict(teacher_of(llama).fingerprints()) == before
    with torch.no_grad():
        teacher.head.bias[0] += 1
    after = dict(teacher.fingerprints())
    assert after["model"] != before["model"]
    assert after["prompt"] == before["prompt"]


def test_an_empty_history_gets_an_answer(llm: Path) -> None:
    empty = torch.full((1, WINDOW), NUM_ITEMS)
    assert torch.isfinite(teacher_of(llm)(empty, torch.tensor([0])).logits).all()


def test_a_bfloat16_language_model_has_float32_experts_and_outputs(llm: Path) -> None:
    teacher = teacher_of(llm, dtype="bfloat16").train()
    forward = teacher(HISTORY, LENGTH)
    assert {value.dtype for value in forward} == {torch.float32}
    nn.functional.cross_entropy(forward.logits, torch.tensor([1, 2, 3])).backward()
    trained = [value for value in teacher.parameters() if value.requires_grad]
    assert {value.dtype for value in trained} == {torch.float32}
    assert all(value.grad is not None and value.grad.any() for value in trained)
    assert teacher.llm.get_base_model().dtype == torch.bfloat16
