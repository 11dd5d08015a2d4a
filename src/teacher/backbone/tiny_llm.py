"""The default language model: a small LLaMA and its tokenizer, made from the dataset's own text.

It reads titles and training histories only; what comes after the training split never reaches it. It is saved as an
ordinary Hugging Face folder and loaded like any other model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel, PreTrainedTokenizerFast

from src.core.data_utils import ordered_batches
from src.core.hardware import no_cudnn_attention
from src.core.logging import progress_bar
from src.core.paths import atomic_folder
from src.core.seed import numpy_generator, seed_everything, torch_generator
from src.core.training import FitResult, fit
from src.data.examples import Examples, SequenceData
from src.data.id_map import IdMap
from src.data.tensor_examples import TensorExamples
from src.teacher.backbone.gated_lora import resolve_targets
from src.teacher.backbone.transformers_calls import hide_progress
from src.teacher.prompts import PLACEHOLDER, PREFIX, SUFFIX, PromptBatch, Prompts, check_titles
from src.teacher.schedule import planned_steps, rate
from src.teacher.settings import TINY, PromptSettings, TeacherSettings, TinySettings

_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"
_HELD_OUT = 0.1  # share of people (of rows, where the source names no people) that only judge the pretraining
_MOST_JUDGED = 256
_IGNORED = -100  # transformers' label for tokens without a loss
_FEED_FORWARD = 8 / 3  # LLaMA's ratio of the feed-forward width to the model's
_WARMUP = 0.1


def build_tiny_llm(
    folder: Path, settings: TinySettings, data: SequenceData, seed: int, device: torch.device
) -> FitResult:
    """Train tokenizer and model, and write them to a folder atomically.

    Args:
        folder: where they are written.
        settings: sizes, rows and epochs.
        data: whose titles and training histories it reads.
        seed: the run's.
        device: where it computes.

    Returns:
        How the pretraining went.

    Raises:
        DataError: titles are missing.
        ConfigError: a title does not fit into the context.
        TrainingFailed: the loss is not finite.
    """
    check_titles(data.id_map)
    no_cudnn_attention()
    seed_everything(seed, "tiny_llm")
    tokenizer = train_tokenizer(data.id_map, settings)
    model = new_model(settings, tokenizer).to(device)
    prompts = pretraining_prompts(data, tokenizer, settings).to(device)
    learn, held_out = split_rows(data.train, settings.rows, seed)
    objective = LanguageObjective(model, training_texts(prompts, learn, device))
    result = _pretrain(objective, training_texts(prompts, held_out, device), settings, seed)
    hide_progress()
    with atomic_folder(folder) as target:
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
    return result


def train_tokenizer(id_map: IdMap, settings: TinySettings) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer over the titles and the prompts' own words; `[HistoryEmb]` is one of its tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [_PAD, _BOS, _EOS, PLACEHOLDER]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([PREFIX, SUFFIX, *(f" {text}" for text in id_map.texts)], trainer)
    bos = tokenizer.token_to_id(_BOS)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{_BOS} $A", special_tokens=[(_BOS, bos)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_BOS, eos_token=_EOS, pad_token=_PAD, model_max_length=settings.context
    )


def check_tiny(settings: TeacherSettings) -> None:
    """Raises ``ModelError`` when ``lora.target_modules`` names layers that `tiny` will not have."""
    if settings.llm == TINY:
        with torch.device("meta"):
            resolve_targets(LlamaModel(_config(settings.tiny, settings.tiny.vocabulary)), settings.lora)


def new_model(settings: TinySettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A freshly initialised LLaMA; draws from torch's global stream."""
    special = ("bos_token_id", "eos_token_id", "pad_token_id")
    return LlamaForCausalLM(_config(settings, len(tokenizer), **{name: getattr(tokenizer, name) for name in special}))


def _config(settings: TinySettings, vocabulary: int, **special: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings.width,
        intermediate_size=round(settings.width * _FEED_FORWARD),
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        max_position_embeddings=settings.context,
        tie_word_embeddings=True,
        use_cache=False,
        attn_implementation="sdpa",
        **special,
    )


def pretraining_prompts(data: SequenceData, tokenizer: PreTrainedTokenizerFast, settings: TinySettings) -> Prompts:
    """Make the prompts that it learns to read; raises ``ConfigError`` when a title does not fit into the context.

    Args:
        data: histories and titles.
        tokenizer: the one that was made of the titles.
        settings: of `tiny`: its context, in tokens.
    """
    return Prompts(data.id_map, tokenizer, _room_for_an_answer(data.history_length, settings))


def _room_for_an_answer(history_length: int, settings: TinySettings) -> PromptSettings:
    usual = PromptSettings()
    longest = min(usual.title_tokens, settings.context // 4)
    return PromptSettings(history_length, longest, settings.context - longest - 1)


def split_rows(train: Examples, most: int, seed: int) -> tuple[Examples, Examples]:
    """Choose training examples to learn from and to judge by, of different people where these are named.

    Args:
        train: the training split.
        most: rows to learn from, at most.
        seed: the run's.
    """
    generator = numpy_generator(seed, "tiny_llm_rows")
    people = np.unique(train.user)
    if len(people) > 1:
        held = generator.choice(people, size=max(1, round(_HELD_OUT * len(people))), replace=False)
        judges = np.isin(train.user, held)
    else:
        judges = generator.random(len(train)) < _HELD_OUT
        judges[0] = True
    learn, judge = (generator.permutation(np.flatnonzero(mask)) for mask in (~judges, judges))
    return train.take(np.sort(learn[:most])), train.take(np.sort(judge[:_MOST_JUDGED]))


def training_texts(prompts: Prompts, rows: Examples, device: torch.device) -> PromptBatch:
    """Each row's prompt with the title that came next at its end: ``[n, S]``.

    Args:
        prompts: of the training examples.
        rows: n examples.
        device: where the tokens are wanted.
    """
    columns = TensorExamples.of(rows, device)
    chosen = prompts.choose(columns.history, columns.length)
    return prompts.lay_out(torch.cat([chosen, columns.target.unsqueeze(1)], dim=1))


@dataclass(frozen=True, eq=False)
class LanguageObjective:
    """The causal language model's cross-entropy over all real tokens."""

    model: LlamaForCausalLM
    texts: PromptBatch

    def loss(self, rows: Tensor) -> Tensor:
        """Mean over the tokens of these texts."""
        mask = self.texts.attention_mask[rows]
        width = int(mask.sum(dim=1).max())
        ids, mask = self.texts.token_ids[rows, :width], mask[:, :width]
        labels = ids.masked_fill(mask == 0, _IGNORED)
        loss: Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return loss


def _pretrain(objective: LanguageObjective, held_out: PromptBatch, settings: TinySettings, seed: int) -> FitResult:
    model, rows = objective.model, len(objective.texts.token_ids)
    judged = LanguageObjective(model, held_out)

    def evaluate() -> Mapping[str, float]:
        parts = ordered_batches(len(held_out.token_ids), settings.loop.batch_size, held_out.token_ids.device)
        losses = [judged.loss(part) for part in parts]
        return {"log_likelihood": -float(torch.stack(losses).mean())}

    optimiser = torch.optim.AdamW(model.parameters(), settings.learning_rate)
    steps = planned_steps(settings.loop, rows)
    with progress_bar("tiny language model: pretraining", steps) as bar:
        return fit(
            model,
            objective,
            optimiser,
            settings.loop,
            rows,
            evaluate,
            torch_generator(seed, "tiny_llm_order"),
            on_step=lambda: bar.advance(bar.task_ids[0]),
            schedule=torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: rate(step, steps, _WARMUP)),
        )
