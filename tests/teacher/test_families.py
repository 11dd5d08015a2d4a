"""Any family: a random model is read, adapted, trained for one step, saved, read again, and says the same."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

from src.core.training import LoopSettings
from src.student.settings import EvaluationSettings
from src.teacher.backbone.gated_lora import checkpoint_activations, inject
from src.teacher.backbone.llm import load_llm
from src.teacher.factory import load_teacher, save_teacher
from src.teacher.ilora_model import GatedTeacher, ILoRATeacher
from src.teacher.item_head.training import start_head
from src.teacher.settings import GateSettings, LoraSettings, PromptSettings, TeacherSettings
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.training import answer_loss
from src.teacher.training import train_teacher
from tests.fixtures import cycle_data
from tests.teacher.builders import CPU, SETTINGS, WIDTH, encoder_of, teacher_of
from tests.teacher.test_ilora_model import HISTORY, LENGTH
from tests.teacher.title_builders import TITLE_SETTINGS, title_teacher_of, tokenizer

CONTEXT = 256
_COMMON = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "max_position_embeddings": CONTEXT}
_MODERN = {**_COMMON, "num_key_value_heads": 1, "intermediate_size": 24}
_FREE = {**_MODERN, "head_dim": 8}


@dataclass(frozen=True)
class Family:
    """A shape of two layers, how many of a layer's maps are adapted, and the attention that is expected on a CPU."""

    shape: dict[str, Any]
    maps: int
    attention: str = "sdpa"
    causal: bool = True


FAMILIES = {
    "llama": Family(_MODERN, 7),
    "qwen2": Family(_MODERN, 7),
    "qwen3": Family(_FREE, 7),
    "gemma": Family(_FREE, 7),
    "gemma2": Family(_FREE, 7, "eager"),  # its capped scores are not in torch's attention
    "gemma3_text": Family(_FREE, 7),
    "mistral": Family(_FREE, 7),
    "opt": Family({**_COMMON, "ffn_dim": 24, "word_embed_proj_dim": WIDTH}, 6),
    "gpt2": Family({"n_layer": 2, "n_head": 2, "n_embd": WIDTH, "n_positions": CONTEXT}, 4),
    "bloom": Family({"n_layer": 2, "n_head": 2, "hidden_size": WIDTH}, 4, "eager"),
    "gpt_neox": Family({**_COMMON, "intermediate_size": 24}, 4),
    "bert": Family({**_COMMON, "intermediate_size": 24}, 6, causal=False),
}
DECODERS = [name for name, family in FAMILIES.items() if family.causal]
LOOP = LoopSettings(epochs=1, batch_size=8, patience=1, monitor="ndcg_5")
ITEM_SETTINGS = replace(
    SETTINGS,
    prompt=PromptSettings(max_tokens=160),
    train=replace(SETTINGS.train, loop=LOOP, learning_rate=1e-1),
    train_rows=8,
    validation_rows=4,
)
WRITES = replace(
    TITLE_SETTINGS,
    train=replace(TITLE_SETTINGS.train, learning_rate=1e-1),
    train_rows=8,
    validation_rows=2,
)


def save_random(folder: Path, name: str) -> Path:
    """A random model of a family, decoders with their language-model head, and a small tokenizer."""
    torch.manual_seed(1)
    reader, family = tokenizer(), FAMILIES[name]
    special = {"bos_token_id": reader.bos_token_id, "eos_token_id": reader.eos_token_id, "pad_token_id": 0}
    config = AutoConfig.for_model(name, vocab_size=len(reader), **special, **family.shape)
    model = (AutoModelForCausalLM if family.causal else AutoModel).from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    reader.save_pretrained(folder)
    return folder


def one_step(folder: Path, settings: TeacherSettings) -> GatedTeacher:
    """The whole way of a training, with a single batch."""
    run = train_teacher(settings, cycle_data(), encoder_of(), str(folder), CPU, 0, EvaluationSettings(ks=(5,)))
    assert run.fit.steps == 1
    return run.teacher


def moved(teacher: GatedTeacher) -> int:
    """Adapted layers whose B, zero at first, has moved."""
    return sum(bool(value.any()) for name, value in teacher.llm.named_parameters() if "lora_B" in name)


def hybrid_inputs(teacher: ILoRATeacher) -> dict[str, Tensor]:
    """What the language model reads about `HISTORY`."""
    prompts = teacher.prompts(HISTORY, LENGTH)
    return {"inputs_embeds": teacher.embed_tokens(prompts), "attention_mask": prompts.attention_mask}


@pytest.mark.parametrize("name", FAMILIES)
def test_trained_saved_and_read_again_every_family_says_the_same(tmp_path: Path, name: str) -> None:
    model, folder = save_random(tmp_path / "model", name), tmp_path / "teacher"
    settings = replace(ITEM_SETTINGS, llm=str(model))
    teacher = one_step(model, settings)
    assert isinstance(teacher, ILoRATeacher)
    assert moved(teacher) == 2 * FAMILIES[name].maps
    assert teacher.llm.get_base_model().config._attn_implementation == FAMILIES[name].attention
    save_teacher(folder, teacher, cycle_data(), {})
    again = load_teacher(folder, settings, cycle_data(), CPU)
    assert torch.equal(teacher(HISTORY, LENGTH).logits, again(HISTORY, LENGTH).logits)
    # anybody's PEFT, a fresh base model: the uniform gate
    plain = PeftModel.from_pretrained(load_llm(str(model), "auto", CPU).model, str(folder / "adapter")).eval()
    with teacher.scope(torch.full((3, 4), 1 / 4)), torch.no_grad():
        wanted = teacher.llm(**hybrid_inputs(teacher)).last_hidden_state
        found = plain(**hybrid_inputs(teacher)).last_hidden_state
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", DECODERS)
def test_every_decoder_that_writes_says_the_same_again(tmp_path: Path, name: str) -> None:
    model = save_random(tmp_path / "model", name)
    settings = replace(WRITES, llm=str(model))
    teacher = one_step(model, settings)
    assert isinstance(teacher, TitleTeacher)
    assert moved(teacher) == 2 * FAMILIES[name].maps
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), {})
    again = load_teacher(tmp_path / "teacher", settings, cycle_data(), CPU)
    question, target = teacher.question(HISTORY, LENGTH), torch.tensor([3, 4, 5])
    assert torch.equal(teacher(question, target).logits, again(question, target).logits)


@pytest.mark.parametrize("name", FAMILIES)
def test_each_sequence_keeps_its_own_gate(tmp_path: Path, name: str) -> None:
    model = save_random(tmp_path, name)
    teacher = one_step(model, replace(ITEM_SETTINGS, llm=str(model), gate=GateSettings(kind="linear")))
    assert isinstance(teacher, ILoRATeacher)
    with torch.no_grad():
        teacher.gate.linear.weight.mul_(30)  # gates that differ much
        together = teacher(HISTORY, LENGTH).logits
        for row in range(3):
            alone = teacher(HISTORY[row : row + 1], LENGTH[row : row + 1]).logits[0]
            torch.testing.assert_close(alone, together[row], rtol=1e-3, atol=1e-3)


def test_layers_that_see_all_tokens_in_one_column_are_gated_by_their_sequence(tmp_path: Path) -> None:
    """OPT's feed-forward layers; also when they are computed again in the backward pass."""
    found = []
    for checkpointing in (False, True):
        llm = load_llm(str(save_random(tmp_path / f"opt_{checkpointing}", "opt")), "auto", CPU).model
        torch.manual_seed(2)
        adapters = inject(llm, LoraSettings(rank=8, experts=4, target_modules=("fc1", "fc2")))
        for parameter in adapters.model.parameters():
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.3)
        if checkpointing:
            checkpoint_activations(adapters)
        gate = torch.eye(4)[:2].requires_grad_()
        with adapters.scope(gate):
            states = adapters.model.train()(inputs_embeds=torch.ones(2, 5, WIDTH)).last_hidden_state
        assert (states[0] - states[1]).abs().max() > 1e-2, "the same tokens under other experts"
        states[1].square().sum().backward()
        assert gate.grad is not None
        assert not gate.grad[0].any()
        assert gate.grad[1].all()
        found.append(gate.grad)
    torch.testing.assert_close(*found)


def test_rows_that_are_no_whole_sequences_are_refused(tmp_path: Path) -> None:
    adapters = inject(load_llm(str(save_random(tmp_path, "opt")), "auto", CPU).model, LoraSettings(rank=8, experts=4))
    with adapters.scope(torch.ones(2, 4) / 4):
        adapters.model(inputs_embeds=torch.ones(2, 5, WIDTH))
        with pytest.raises(ValueError, match="8 sequences met 4 experts"):
            adapters.scope.factor(torch.Size([8, 8]))  # as a router's choice of 8 among 10 tokens would be


@pytest.mark.parametrize("name", ["gemma", "gemma3_text", "llama"])
def test_projected_items_begin_as_tokens_look_to_the_models_layers(tmp_path: Path, name: str) -> None:
    """Gemma's embedding multiplies by √D what its table holds."""
    teacher = teacher_of(save_random(tmp_path, name), head=replace(SETTINGS.head, init="random"))
    start_head(teacher, cycle_data(), 0)
    embedding = teacher.llm.get_base_model().get_input_embeddings()
    with torch.no_grad():
        seen = embedding(torch.arange(embedding.num_embeddings))
        items = teacher.projector(teacher.encoder.item_embeddings.weight[: teacher.num_items])
    torch.testing.assert_close(items.std(dim=0).mean(), seen.std(dim=0).mean())
    torch.testing.assert_close(items.mean(dim=0), seen.mean(dim=0), rtol=1e-3, atol=1e-4)
    assert torch.equal(seen, embedding.weight) == (name == "llama")


def test_a_placeholder_that_says_nothing_is_the_average_of_what_the_layers_see(tmp_path: Path) -> None:
    teacher = title_teacher_of(save_random(tmp_path, "gemma"))
    embedding = teacher.causal_lm.get_input_embeddings()
    with torch.no_grad():
        seen = embedding(torch.arange(embedding.num_embeddings)).mean(dim=0)
    torch.testing.assert_close(teacher.plain, seen)
    assert (seen - embedding.weight.mean(dim=0)).abs().max() > 0.01


@pytest.mark.parametrize("name", DECODERS)
def test_prompts_padded_on_the_left_have_the_loss_of_those_on_the_right(tmp_path: Path, name: str) -> None:
    teacher = title_teacher_of(save_random(tmp_path, name))
    question, target = teacher.question(HISTORY, LENGTH), torch.tensor([3, 4, 5])
    batch, labels = teacher.prompts.answered(question, target)
    with teacher.gated(HISTORY, LENGTH):
        embedded = teacher.embed_tokens(batch)
        whole = teacher.llm(inputs_embeds=embedded, attention_mask=batch.attention_mask).logits
    wanted = answer_loss(whole[:, :-1], labels[:, 1:])
    forward = teacher(question, target)
    torch.testing.assert_close(answer_loss(forward.logits, forward.labels), wanted, rtol=1e-4, atol=1e-4)
