"""Answers by generation, and what they are worth over stored candidate lists."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from transformers import GenerationConfig

from src.core.logging import progress_bar
from src.core.memory import in_parts
from src.data.tensor_examples import TensorExamples
from src.teacher.labelling.labels import BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE
from src.teacher.title_lm.model import TitleTeacher
from src.teacher.title_lm.prompts import Question
from src.teacher.title_lm.text import AnswerShares, Judgement, answer_hit_ratio, answer_of, judge_answer


@torch.no_grad()
def write_answers(
    teacher: TitleTeacher, history: Tensor, length: Tensor, candidates: Tensor | None = None
) -> list[str]:
    """Write an answer to each history: the first line of what is generated; the mode is left as it was.

    Greedy, or by beam search with ``title.beams``; an answer ends at its end token or at the length of the longest
    title.

    Args:
        teacher: one that writes.
        history: ``[B, L]``.
        length: ``[B]``.
        candidates: as for `TitleTeacher.question`.
    """
    training = teacher.training
    teacher.eval()
    try:
        return _write(teacher, history, length, candidates)
    finally:
        teacher.train(training)


def _write(teacher: TitleTeacher, history: Tensor, length: Tensor, candidates: Tensor | None) -> list[str]:
    beams, prompts = teacher.settings.title.beams, teacher.prompts
    embedded, mask = teacher.prompt_embeddings(history, length, candidates)
    config = GenerationConfig(
        max_new_tokens=prompts.longest_answer,
        num_beams=beams,
        do_sample=False,
        use_cache=True,
        eos_token_id=prompts.end_id,
        pad_token_id=prompts.pad_id,
    )
    with teacher.gated(history, length, repeat=beams):
        written = teacher.causal_lm.generate(inputs_embeds=embedded, attention_mask=mask, generation_config=config)
    texts = prompts.tokenizer.batch_decode(written, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return [answer_of(text) for text in texts]


def answer_all(
    teacher: TitleTeacher, examples: TensorExamples, candidates: Tensor, batch_size: int, description: str = ""
) -> list[str]:
    """Answer each example; batches hold prompts of like length, and out of memory halves them from there on.

    Args:
        teacher: one that writes.
        examples: on its device.
        candidates: ``[n, K]``, shown where prompts list any.
        batch_size: prompts at once.
        description: draws a bar, which must not happen inside of another one; empty: none.

    Raises:
        OutOfMemory: not even one prompt fits.
    """
    shown = candidates if teacher.settings.title.show_candidates else None
    cost = teacher.prompts.token_counts(Question(examples.history, examples.length, shown))
    order, answers = cost.argsort(stable=True), [""] * len(examples)
    with progress_bar(description, len(examples)) if description else nullcontext() as bar:

        def write(rows: Tensor) -> None:
            found = write_answers(teacher, examples.history[rows], examples.length[rows], candidates[rows])
            for row, answer in zip(rows.tolist(), found, strict=True):
                answers[row] = answer
            if bar is not None:
                bar.advance(bar.task_ids[0], len(rows))

        in_parts(order, batch_size, write, BATCH_SIZE_KEY, OUT_OF_MEMORY_ADVICE)
    return answers


def judge_each(answers: Sequence[str], target: Tensor, candidates: Tensor, titles: Sequence[str]) -> list[Judgement]:
    """Judge each answer, see `judge_answer`.

    Args:
        answers: n of them.
        target: ``[n]``, the items that came next.
        candidates: ``[n, K]``.
        titles: of all items.
    """
    rows = zip(answers, target.tolist(), candidates.tolist(), strict=True)
    return [judge_answer(answer, titles[item], [titles[c] for c in listed]) for answer, item, listed in rows]


def judge_answers(answers: Sequence[str], target: Tensor, candidates: Tensor, titles: Sequence[str]) -> AnswerShares:
    """Compute HitRatio@1 and ValidRatio of answers.

    Args:
        answers: n of them.
        target: ``[n]``, the items that came next.
        candidates: ``[n, K]``.
        titles: of all items.
    """
    return answer_hit_ratio(judge_each(answers, target, candidates, titles))


def title_metrics(
    teacher: TitleTeacher, examples: TensorExamples, candidates: Tensor, batch_size: int
) -> dict[str, float]:
    """Answer examples and compute ``hit_ratio_1`` (correct / rows), ``valid_ratio`` and ``hit_ratio_1_of_valid``.

    The last one is correct / valid, as published.

    Args:
        teacher: one that writes.
        examples: on its device.
        candidates: ``[n, K]``.
        batch_size: prompts at once.
    """
    answers = answer_all(teacher, examples, candidates, batch_size)
    found = judge_answers(answers, examples.target, candidates, teacher.prompts.texts)
    return {
        "hit_ratio_1": found.of_all,
        "valid_ratio": found.valid_ratio,
        "hit_ratio_1_of_valid": found.of_valid,
    }
