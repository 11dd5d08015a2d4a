"""Language models, tokenizers and titles that do not go together: said while nothing has been read or trained."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import normalizers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, Gemma3Config, PreTrainedModel

from src.core.errors import ConfigError, ModelError
from src.student.settings import EvaluationSettings
from src.teacher.backbone import gated_lora
from src.teacher.backbone.gated_lora import attach, inject
from src.teacher.backbone.language_head import check_language_head, with_language_head
from src.teacher.backbone.llm import load_llm
from src.teacher.backbone.model_check import check_llm
from src.teacher.backbone.model_config import blueprint
from src.teacher.objective import objective_of
from src.teacher.preflight import check_prompts
from src.teacher.settings import LoraSettings, PromptSettings, TeacherSettings, TinySettings
from src.teacher.title_lm.preflight import check_writer
from src.teacher.training import train_teacher
from tests.fixtures import NUM_ITEMS, cycle_data
from tests.teacher.builders import CPU, SETTINGS, WIDTH, encoder_of
from tests.teacher.title_builders import TITLE_SETTINGS, save_random_causal, tokenizer

LORA = LoraSettings(rank=8, experts=4)
_SHAPE = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": WIDTH, "max_position_embeddings": 256}
MIXTURE = {
    **_SHAPE,
    "intermediate_size": 24,
    "moe_intermediate_size": 8,
    "num_key_value_heads": 1,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "first_k_dense_replace": 1,
    "head_dim": 8,
}


def random_model(family: str, shape: dict[str, Any], causal: bool = False) -> PreTrainedModel:
    """Freshly initialised, for the tests' tokenizer."""
    torch.manual_seed(1)
    config = AutoConfig.for_model(family, vocab_size=len(tokenizer()), **shape)
    model: PreTrainedModel = (AutoModelForCausalLM if causal else AutoModel).from_config(config)
    return model


def save(folder: Path, family: str, shape: dict[str, Any], causal: bool = False) -> Path:
    """A model's folder."""
    random_model(family, shape, causal).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def of(folder: Path, settings: TeacherSettings = SETTINGS, **changes: Any) -> TeacherSettings:
    """Settings with this model."""
    return replace(settings, llm=str(folder), **changes)


# ------------------------------------------------------------------------------------------------------ mixed experts


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose experts' maps are one tensor: PEFT turns to it when it is asked for maps of the same names."""
    return save(tmp_path_factory.mktemp("glm4_moe"), "glm4_moe", MIXTURE)


def test_experts_that_no_gate_reaches_are_refused_at_the_door(mixture: Path) -> None:
    rule = r"mlp.experts \(Glm4MoeExperts\) is no linear map: .* such as \[q_proj,k_proj,v_proj,o_proj\]"
    with pytest.raises(ModelError, match=rule):
        check_llm(of(mixture))
    with pytest.raises(ModelError, match=rule):
        inject(load_llm(str(mixture), "auto", CPU).model, LORA)


def test_what_the_refusal_names_can_be_adapted(mixture: Path) -> None:
    named = replace(LORA, target_modules=("q_proj", "k_proj", "v_proj", "o_proj"))
    check_llm(of(mixture, lora=named))
    assert inject(load_llm(str(mixture), "auto", CPU).model, named).layers == 2 * 4


def test_a_loaded_adapter_that_no_gate_reaches_is_refused() -> None:
    with torch.device("meta"):
        llm = random_model("glm4_moe", MIXTURE)
    adapted = get_peft_model(llm, LoraConfig(r=8, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"]))
    with pytest.raises(ModelError, match=r"cannot be gated → name layers that can, such as \[q_proj\]"):
        attach(adapted, LoraSettings(rank=8, experts=4))


def test_other_layers_than_promised_are_refused(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(llm: PreTrainedModel, config: LoraConfig, **named: Any) -> Any:
        assert isinstance(config.target_modules, set)
        config.target_modules -= {"down_proj"}
        return get_peft_model(llm, config, **named)

    monkeypatch.setattr(gated_lora, "get_peft_model", forgetful)
    with pytest.raises(ModelError, match=r"layers.0.mlp.down_proj differs") as caught:
        inject(blueprint(str(llama)), LORA)
    (problem,) = caught.value.problems
    assert problem.value == ["layers.0.mlp.down_proj", "layers.1.mlp.down_proj"]
    assert "down_proj" not in problem.next_step
    assert "q_proj" in problem.next_step


# ------------------------------------------------------------------------------------------------- kinds of the model


def test_a_model_of_images_too_is_refused_by_kind(llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(llama, tmp_path / "model"))
    Gemma3Config().save_pretrained(folder)
    for look in (lambda: check_llm(of(folder)), lambda: load_llm(str(folder), "auto", CPU)):
        with pytest.raises(ModelError, match="gemma3 is no model of text alone → name a text model"):
            look()


def test_checkpointing_that_the_family_cannot_do_is_refused(tmp_path: Path, llama: Path) -> None:
    old = save(tmp_path, "openai-gpt", {"n_layer": 1, "n_head": 2, "n_embd": WIDTH, "n_positions": 256})
    check_llm(of(old))
    check_llm(of(llama, gradient_checkpointing=True))
    with pytest.raises(ModelError, match=r"gradient_checkpointing = True: OpenAIGPTModel cannot do it"):
        check_llm(of(old, gradient_checkpointing=True))


# -------------------------------------------------------------------------------------------------- the language head


@pytest.mark.parametrize("family", ["llama", "gemma", "gpt2", "gpt_neox"])
def test_a_model_that_can_write_passes(tmp_path: Path, family: str) -> None:
    check_writer(of(save_random_causal(tmp_path, family), TITLE_SETTINGS))


def test_a_head_that_is_not_in_the_files_is_missed_at_the_door(llama: Path, tmp_path: Path) -> None:
    rule = r"no weights for its language-model head \(lm_head.weight\)"
    with pytest.raises(ModelError, match=rule):
        check_writer(of(llama, TITLE_SETTINGS))
    whole = save_random_causal(tmp_path / "whole")
    lost = Path(shutil.copytree(whole, tmp_path / "lost"))
    weights = load_file(lost / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, lost / "model.safetensors", metadata={"format": "pt"})
    check_writer(of(whole, TITLE_SETTINGS))
    check_llm(of(lost, TITLE_SETTINGS))
    with pytest.raises(ModelError, match=rule):
        check_writer(of(lost, TITLE_SETTINGS))
    objective_of("item_ce").check_llm(of(lost, SETTINGS))


def test_a_family_that_only_reads_is_refused(tmp_path: Path) -> None:
    shape = {**_SHAPE, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8}
    reader = save(tmp_path, "qwen3_vl_text", shape)
    rule = "qwen3_vl_text has no causal language model → choose a causal language model, or teacher.objective=item_ce"
    with pytest.raises(ModelError, match=rule):
        check_writer(of(reader, TITLE_SETTINGS))
    with pytest.raises(ModelError, match=rule):
        with_language_head(load_llm(str(reader), "auto", CPU))


def test_a_family_that_computes_all_logits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_random_causal(tmp_path)
    body = blueprint(str(folder))

    def forward(self: Any, input_ids: Any = None, inputs_embeds: Any = None) -> None:
        """One of an older kind."""

    monkeypatch.setattr("transformers.LlamaForCausalLM.forward", forward)
    for look in (
        lambda: check_language_head(str(folder), body),
        lambda: with_language_head(load_llm(str(folder), "auto", CPU)),
    ):
        with pytest.raises(ModelError, match="it takes no logits_to_keep"):
            look()


# ------------------------------------------------------------------------------------------------- titles and prompts


def silent(folder: Path) -> None:
    """A tokenizer that drops the word 7: a title of nothing else becomes nothing."""
    reader = AutoTokenizer.from_pretrained(folder)
    reader.backend_tokenizer.normalizer = normalizers.Replace(" 7", "")
    reader.save_pretrained(folder)


@pytest.mark.parametrize("settings", [SETTINGS, TITLE_SETTINGS], ids=["item_ce", "title_lm"])
@pytest.mark.parametrize("tiny", [False, True])
def test_prompts_that_do_not_fit_are_refused_at_the_door(tmp_path: Path, settings: TeacherSettings, tiny: bool) -> None:
    llama = save_random_causal(tmp_path, max_position_embeddings=128)
    settings = replace(settings, llm="tiny" if tiny else str(llama), tiny=TinySettings(vocabulary=300))
    # the LLaMA reads 128 tokens, answers included
    fits = replace(settings, prompt=PromptSettings(max_tokens=120))
    check_prompts(fits, cycle_data())
    with pytest.raises(ConfigError, match="prompt.max_tokens = 8: a prompt with"):
        check_prompts(replace(settings, prompt=PromptSettings(max_tokens=8)), cycle_data())


def test_titles_that_do_not_fit_into_the_tiny_models_context_are_refused() -> None:
    # so many like syllables that the tokenizer learns no word of the prompt's own
    data = cycle_data()
    for item in range(NUM_ITEMS):
        data = retitled(data, item, "".join(chr(200 + item) + chr(300 + k % 40) for k in range(200)))
    settings = replace(SETTINGS, llm="tiny", prompt=PromptSettings(max_tokens=64, title_tokens=1))
    check_prompts(replace(settings, tiny=TinySettings(context=128, vocabulary=300)), data)
    with pytest.raises(ConfigError, match="prompt.max_tokens = 47: a prompt with the longest title needs"):
        check_prompts(replace(settings, tiny=TinySettings(context=64, vocabulary=300)), data)


@pytest.mark.parametrize("settings", [SETTINGS, TITLE_SETTINGS], ids=["item_ce", "title_lm"])
def test_titles_that_become_nothing_are_refused_at_the_door(tmp_path: Path, settings: TeacherSettings) -> None:
    folder = save_random_causal(tmp_path)
    silent(folder)
    data = cycle_data()
    with pytest.raises(ConfigError, match="its tokenizer turns 1 titles into nothing"):
        check_prompts(of(folder, settings), retitled(data, 2, "7"))


def retitled(data: Any, item: int, title: str) -> Any:
    """Data whose item has another title."""
    titles = [*data.id_map.titles]
    titles[item] = title
    return replace(data, id_map=replace(data.id_map, titles=tuple(titles), texts=()))


@pytest.mark.parametrize("answer", ["corrected", "as_released"])
def test_a_title_of_two_lines_could_never_be_an_answer(tmp_path: Path, answer: str) -> None:
    settings = of(save_random_causal(tmp_path), TITLE_SETTINGS)
    settings = replace(settings, title=replace(settings.title, answer=answer))
    check_prompts(settings, retitled(cycle_data(), 3, " Title\t3 "))
    broken = retitled(cycle_data(), 3, "Title\n3")
    with pytest.raises(ConfigError, match=r"1 of 12 have several lines \(raw ids raw_3\)"):
        check_prompts(settings, broken)
    check_prompts(of(save_random_causal(tmp_path), SETTINGS), broken)


Say = Callable[[int], list[str]]


@pytest.fixture
def said(llama: Path, caplog: pytest.LogCaptureFixture) -> Say:
    """What a run says about titles when so many tokens of each are read."""

    def run(title_tokens: int) -> list[str]:
        caplog.clear()
        settings = of(llama, prompt=PromptSettings(max_tokens=64, title_tokens=title_tokens))
        with caplog.at_level(logging.INFO, logger="src.teacher.operations.estimate_report"):
            train_teacher(settings, cycle_data(8, 4), encoder_of(), str(llama), CPU, 0, EvaluationSettings())
        return [record.getMessage() for record in caplog.records if "title_tokens" in record.getMessage()]

    return run


def test_titles_that_are_cut_are_counted_once(said: Say) -> None:
    reader = tokenizer()
    sizes = [len(reader(f" Title {item}", add_special_tokens=False)["input_ids"]) for item in range(NUM_ITEMS)]
    assert said(max(sizes)) == []
    (line,) = said(1)
    assert sum(size > 1 for size in sizes) == NUM_ITEMS
    # " Title" is all that is left of every one
    assert line == (
        f"teacher: {NUM_ITEMS} of {NUM_ITEMS} titles are cut to teacher.prompt.title_tokens=1 in prompts; "
        f"{NUM_ITEMS} of them can no longer be told from another item's by their text"
    )


# --------------------------------------------------------------------------------------- a maker's advice for chatting


def test_what_a_models_makers_advise_for_chats_does_not_reach_answers(tmp_path: Path) -> None:
    from src.teacher.title_lm.generation import write_answers
    from tests.teacher.test_title_model import ASKED
    from tests.teacher.title_builders import title_teacher_of

    plain = save_random_causal(tmp_path / "plain", deviation=1.0)
    chatty = Path(shutil.copytree(plain, tmp_path / "chatty"))
    wanted = write_answers(title_teacher_of(plain), *ASKED)
    ids = title_teacher_of(plain).prompts.tokenizer(wanted[0], add_special_tokens=False)["input_ids"]
    advice = {"repetition_penalty": 50.0, "do_sample": True, "temperature": 9.0, "suppress_tokens": ids, "top_k": 1}
    (chatty / "generation_config.json").write_text(json.dumps(advice), encoding="utf-8")
    assert write_answers(title_teacher_of(chatty), *ASKED) == wanted


# ------------------------------------------------------------------------------------------------- half-precision state


def test_a_model_that_keeps_a_number_in_half_precision_is_saved_and_read_again(tmp_path: Path) -> None:
    from src.teacher.factory import load_teacher, save_teacher
    from tests.teacher.builders import teacher_of

    shape = {**_SHAPE, "intermediate_size": 24, "num_key_value_heads": 1, "head_dim": 8, "global_head_dim": 8}
    small = {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "vocab_size_per_layer_input": 300}
    model = random_model("gemma4_text", {**shape, **small})
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    settings = of(tmp_path / "model", dtype="bfloat16")
    teacher = teacher_of(tmp_path / "model", settings)
    assert any(buffer.dtype == torch.bfloat16 for _, buffer in teacher.llm.named_buffers())
    save_teacher(tmp_path / "teacher", teacher, cycle_data(), {})
    again = load_teacher(tmp_path / "teacher", settings, cycle_data(), CPU)
    assert again.fingerprints() == teacher.fingerprints()
    with torch.no_grad():
        next(iter(again.parameter_groups()["experts"])).add_(1.0)
    assert again.fingerprints() != teacher.fingerprints()
