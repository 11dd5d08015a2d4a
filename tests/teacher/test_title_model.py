"""The teacher that writes: where its loss lies, what its gate reaches, and that an answer is its row's own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from src.core.errors import ModelError
from src.teacher.backbone.language_head import with_language_head
from src.teacher.backbone.llm import load_llm
from src.teacher.settings import GateSettings, LoraSettings, TitleSettings
from src.teacher.title_lm.decoding.grounding import embed_texts
from src.teacher.title_lm.generation import write_answers
from src.teacher.title_lm.prompts import IGNORED, Question
from src.teacher.title_lm.training import answer_loss
from tests.fixtures import NUM_ITEMS
from tests.teacher.builders import CPU
from tests.teacher.test_ilora_model import HISTORY, LENGTH
from tests.teacher.title_builders import (
    FAMILIES,
    TITLE_SETTINGS,
    llama_tokenizer,
    save_random_causal,
    title_teacher_of,
    tokenizer,
)

CANDIDATES = torch.tensor([[8, 9, 5, 10], [0, 1, 2, 3], [8, 9, 10, 11]])
TARGET = torch.tensor([5, 0, 8])
ASKED = Question(HISTORY, LENGTH, CANDIDATES)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random causal LLaMA with a head of its own."""
    return save_random_causal(tmp_path_factory.mktemp("causal"))


def whole_logits(folder: Path, hybrid: bool = True) -> tuple[Tensor, Tensor]:
    """Logits at every place of the answered prompts, and the labels there."""
    teacher = title_teacher_of(folder)
    batch, labels = teacher.prompts.answered(ASKED, TARGET, hybrid)
    with teacher.gated(HISTORY, LENGTH):
        output = teacher.llm(inputs_embeds=teacher.embed_tokens(batch), attention_mask=batch.attention_mask)
    return output.logits, labels


@pytest.mark.parametrize("hybrid", [True, False])
def test_the_loss_is_the_language_models_own_on_the_answers_tokens(folder: Path, hybrid: bool) -> None:
    teacher = title_teacher_of(folder)
    batch, labels = teacher.prompts.answered(ASKED, TARGET, hybrid)
    with teacher.gated(HISTORY, LENGTH):
        embedded = teacher.embed_tokens(batch)
        wanted = teacher.llm(inputs_embeds=embedded, attention_mask=batch.attention_mask, labels=labels).loss
    forward = teacher(ASKED, TARGET, hybrid)
    tokens = int((labels != IGNORED).sum())
    assert int((forward.labels != IGNORED).sum()) == tokens
    torch.testing.assert_close(answer_loss(forward.logits, forward.labels) / tokens, wanted)


def test_only_the_answers_places_matter(folder: Path) -> None:
    logits, labels = whole_logits(folder)
    learned = labels[:, 1:] != IGNORED  # the place before a token predicts it
    base = answer_loss(logits[:, :-1], labels[:, 1:])
    noise = torch.randn_like(logits[:, :-1])
    elsewhere = logits[:, :-1] + noise.masked_fill(learned.unsqueeze(2), 0.0)
    torch.testing.assert_close(answer_loss(elsewhere, labels[:, 1:]), base)
    for place in learned.nonzero():
        one = torch.zeros_like(learned).index_put(tuple(place), torch.tensor(True))
        moved = logits[:, :-1] + noise * one.unsqueeze(2)
        assert abs(float((answer_loss(moved, labels[:, 1:]) - base).detach())) > 1e-4


def test_there_are_as_many_columns_of_logits_as_the_longest_answer_has_tokens(folder: Path) -> None:
    prompts = title_teacher_of(folder).prompts
    counts, answers = prompts.token_counts(ASKED), prompts.answer_sizes[TARGET]
    assert len(set(counts.tolist())) == 3, "padded on the right, answers would stand in different columns"
    forward = title_teacher_of(folder)(ASKED, TARGET)
    assert forward.labels.shape == forward.logits.shape[:2] == (3, int(answers.max()))
    assert (forward.labels[:, -1] == prompts.end_id).all()
    assert (forward.labels != IGNORED).sum(dim=1).tolist() == answers.tolist()


@pytest.mark.parametrize("rows", [[0], [1], [2, 0]])
def test_a_rows_loss_does_not_depend_on_its_batch(folder: Path, rows: list[int]) -> None:
    teacher = title_teacher_of(folder)

    def losses(chosen: list[int]) -> list[float]:
        forward = teacher(Question(HISTORY[chosen], LENGTH[chosen], CANDIDATES[chosen]), TARGET[chosen])
        return [answer_loss(forward.logits[[r]], forward.labels[[r]]).item() for r in range(len(chosen))]

    together = losses([0, 1, 2])
    assert losses(rows) == pytest.approx([together[row] for row in rows], rel=1e-4)


def test_exactly_experts_gate_and_projector_are_trained(folder: Path) -> None:
    teacher = title_teacher_of(folder, gate=GateSettings(kind="linear")).train()
    forward = teacher(ASKED, TARGET)
    answer_loss(forward.logits, forward.labels).backward()
    moved = {name for name, value in teacher.named_parameters() if value.grad is not None and value.grad.any()}
    assert moved == {name for name, value in teacher.named_parameters() if value.requires_grad}
    groups = teacher.parameter_groups()
    assert list(groups) == ["experts", "projector", "gate"]
    assert sum(len(group) for group in groups.values()) == len(moved)


def test_a_text_only_prompt_says_nothing_about_items(folder: Path) -> None:
    teacher = title_teacher_of(folder).train()
    forward = teacher(ASKED, TARGET, hybrid=False)
    answer_loss(forward.logits, forward.labels).backward()
    assert not any(p.grad is not None and p.grad.any() for p in teacher.projector.parameters())
    batch = teacher.prompts.ask(ASKED, hybrid=False)
    embedded = teacher.embed_tokens(batch)
    words = teacher.causal_lm.get_input_embeddings().weight
    average = batch.token_ids == teacher.prompts.plain_id
    torch.testing.assert_close(embedded[average], words.mean(dim=0).expand(int(average.sum()), -1))
    assert torch.equal(embedded[~average], words[batch.token_ids[~average]])


def test_the_gate_reaches_the_answers(folder: Path) -> None:
    teacher = title_teacher_of(folder, gate=GateSettings(kind="linear"))
    before = teacher(ASKED, TARGET).logits
    with torch.no_grad():
        teacher.gate.linear.weight.mul_(-3)
    assert (teacher(ASKED, TARGET).logits - before).abs().max() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_an_answer_does_not_depend_on_its_batch_in_any_family(tmp_path: Path, family: str, beams: int) -> None:
    teacher = title_teacher_of(
        save_random_causal(tmp_path, family, deviation=1.0),
        title=TitleSettings(candidates=4, beams=beams),
        gate=GateSettings(kind="linear"),
    )
    together = write_answers(teacher, *ASKED)
    alone = [answer for row in range(3) for answer in write_answers(teacher, *(part[[row]] for part in ASKED))]
    assert together == alone
    assert any(together)
    turned = write_answers(teacher, *(part[[2, 1, 0]] for part in ASKED))
    assert turned == together[::-1]


def test_greedy_generation_is_the_argmax_of_the_whole_sequence_each_time(folder: Path) -> None:
    teacher = title_teacher_of(folder)
    ids, table = list[int](), teacher.causal_lm.get_input_embeddings()
    embedded, _ = teacher.prompt_embeddings(HISTORY[:1], LENGTH[:1], CANDIDATES[:1])
    for _ in range(teacher.prompts.longest_answer):
        with teacher.gated(HISTORY[:1], LENGTH[:1]), torch.no_grad():
            ids.append(int(teacher.causal_lm(inputs_embeds=embedded).logits[0, -1].argmax()))
        if ids[-1] == teacher.prompts.end_id:
            break
        embedded = torch.cat([embedded, table(torch.tensor([[ids[-1]]]))], dim=1)
    text = teacher.prompts.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert write_answers(teacher, HISTORY[:1], LENGTH[:1], CANDIDATES[:1]) == [text.strip().split("\n")[0]]


def test_generation_outside_of_the_gate_is_refused_and_leaves_the_mode(folder: Path) -> None:
    teacher = title_teacher_of(folder).train()
    embedded, mask = teacher.prompt_embeddings(HISTORY, LENGTH, CANDIDATES)
    with pytest.raises(RuntimeError, match="without a gate"):
        teacher.causal_lm(inputs_embeds=embedded, attention_mask=mask)
    write_answers(teacher, *ASKED)
    assert teacher.training


def test_candidates_without_a_target_are_the_recommenders_best_unseen_items(folder: Path) -> None:
    teacher = title_teacher_of(folder)
    proposed = teacher.propose(HISTORY, LENGTH)
    assert proposed.shape == (3, 4)
    scores = teacher.encoder(HISTORY, LENGTH)
    for row in range(3):
        unseen = [item for item in scores[row].argsort(descending=True).tolist() if item not in HISTORY[row].tolist()]
        assert proposed[row].tolist() == unseen[:4]
    shown = teacher.prompt_embeddings(HISTORY, LENGTH)
    assert torch.equal(shown[0], teacher.prompt_embeddings(HISTORY, LENGTH, proposed)[0])
    few = title_teacher_of(folder, title=TitleSettings(candidates=10))
    assert few.propose(HISTORY, LENGTH)[0].tolist().count(NUM_ITEMS) == 3


def test_an_answer_that_is_a_title_lies_where_the_title_lies_for_any_tokenizer(tmp_path: Path) -> None:
    for name, reader in {"byte_level": tokenizer(), "llama": llama_tokenizer()}.items():
        teacher = title_teacher_of(save_random_causal(tmp_path / name, reader=reader))
        texts = [f"Title {item}" for item in range(NUM_ITEMS)]
        found = embed_texts(teacher.llm, teacher.prompts.tokenizer, texts, 4)
        torch.testing.assert_close(found, teacher.embed_items(4))


def test_the_gate_for_searches_follows_the_rows_that_are_left(folder: Path) -> None:
    teacher = title_teacher_of(folder)
    gate, weights = teacher.gate_for(HISTORY, LENGTH), teacher.gate_weights(HISTORY, LENGTH)
    with gate(torch.tensor([2, 2, 0])):
        found = teacher.scope.gate_weights
    assert found is not None
    assert torch.equal(found, weights[[2, 2, 0]])


def test_titles_as_token_ids_end_before_the_end(folder: Path) -> None:
    teacher = title_teacher_of(folder)
    titles = teacher.title_token_ids()
    assert [teacher.prompts.tokenizer.decode(ids) for ids in titles] == [f" Title {item}" for item in range(NUM_ITEMS)]
    assert teacher.prompts.end_id == teacher.prompts.tokenizer.eos_token_id


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_put_back_as_the_model_was_saved(tmp_path: Path, family: str) -> None:
    saved = save_random_causal(tmp_path, family)
    language = with_language_head(load_llm(str(saved), "auto", CPU))
    ids = torch.tensor([[5, 9, 70, 12]])
    with torch.no_grad():
        wanted = AutoModelForCausalLM.from_pretrained(saved).eval()(input_ids=ids).logits
        torch.testing.assert_close(language.model(input_ids=ids).logits, wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_no_layer_to_adapt(tmp_path: Path, family: str) -> None:
    teacher = title_teacher_of(save_random_causal(tmp_path, family))
    head = next(
        name
        for name, module in teacher.causal_lm.named_modules()
        if module is teacher.causal_lm.get_output_embeddings()
    )
    adapted = {name.split(".lora_")[0] for name, _ in teacher.causal_lm.named_parameters() if ".lora_" in name}
    assert adapted
    assert head not in adapted


def test_named_layers_are_adapted_alone(folder: Path) -> None:
    teacher = title_teacher_of(folder, lora=LoraSettings(rank=8, experts=4, target_modules=("q_proj",)))
    adapted = {name.split(".lora_")[0] for name, _ in teacher.causal_lm.named_parameters() if ".lora_" in name}
    assert adapted == {f"model.layers.{layer}.self_attn.q_proj" for layer in (0, 1)}


def test_an_encoder_is_refused(bert: Path) -> None:
    with pytest.raises(ModelError, match="is an encoder; title_lm writes titles"):
        title_teacher_of(bert)


def test_a_decoder_without_a_head_is_refused(llama: Path) -> None:
    with pytest.raises(ModelError, match=r"no weights for its language-model head \(lm_head.weight\)"):
        title_teacher_of(llama)


def test_gradients_are_the_same_with_checkpointing(folder: Path) -> None:
    found = []
    for checkpointing in (False, True):
        settings = replace(TITLE_SETTINGS, gradient_checkpointing=checkpointing, gate=GateSettings(kind="linear"))
        teacher = title_teacher_of(folder, settings).train()
        forward = teacher(ASKED, TARGET)
        answer_loss(forward.logits, forward.labels).backward()
        found.append({name: value.grad for name, value in teacher.named_parameters() if value.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name])
