"""`prompts` and `hr1`: filled templates, tokens and labels, curriculum, learning rates, what an answer counts for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AddedToken, PreTrainedTokenizerFast

from src.core.training import LoopSettings
from src.data.id_map import IdMap
from src.teacher.prompts import PLACEHOLDER
from src.teacher.settings import PromptSettings, TeacherSettings, TeacherTrainSettings, TitleSettings
from src.teacher.title_lm.curriculum import is_hybrid
from src.teacher.title_lm.objective import TITLE_MONITOR
from src.teacher.title_lm.prompts import IGNORED, Question, TitlePrompts
from src.teacher.title_lm.text import (
    ANSWER_END,
    CANDIDATES_MARK,
    PLAIN_MARK,
    TARGET_MARK,
    answer_hit_ratio,
    answer_of,
    fill,
    judge_answer,
)
from src.teacher.title_lm.training import title_rate
from tests.golden.sentencepiece_file import load_tokenizer
from tests.golden.sources import FLOAT64, Leaves, Sources, require

_PAD = "[PAD]"
_ENDLESS = 10**6
_HYBRID, _TEXT_ONLY = "emb", "ph"


def _leaves(content: Mapping[str, Any], label: str) -> Leaves:
    return Leaves(content, label)


def _finish(leaves: Leaves) -> None:
    require(not (missed := leaves.unused()), f"nobody checked {missed}")


# ---------------------------------------------------------------------------------------------------------------- text


def check_prompt_text(sources: Sources, file: Path) -> None:
    """Every template with every sample, both variants, and the curriculum's choice between them."""
    content = sources.json(file)
    require(isinstance(content["note"], str), "note")
    samples = [_sample(row, f"sample {place}") for place, row in enumerate(content["samples"])]
    templates = content.inside("templates")
    for place, row in enumerate(content["cases"]):
        case = _leaves(row, f"case {place}")
        sample = samples[case.whole_number("sample_index")]
        template = templates[case["template_file"]][case.whole_number("template_index")]
        _check_filled(case, template, sample)
        case.expect("target_train", f"{sample['correct_answer']}{ANSWER_END}")
        _finish(case)
    for place, row in enumerate(content.get("extra_templates", [])):
        case = _leaves(row, f"extra template {place}")
        _check_filled(case, case["template"], samples[case.whole_number("sample_index")])
        _finish(case)
    for place, row in enumerate(content["curriculum"]):
        _check_curriculum(_leaves(row, f"curriculum {place}"))


def _sample(row: Mapping[str, Any], label: str) -> Leaves:
    sample = _leaves(row, label)
    require(len(sample["ids"]) == len(sample["seq_name"]), f"{label}: ids")
    require(len(sample["cans"]) == len(sample["cans_name"]), f"{label}: cans")
    place = sample["cans_name"].index(sample["correct_answer"])
    sample.expect("item_id", sample["cans"][place])
    _finish(sample)
    return sample


def _check_filled(case: Leaves, template: str, sample: Leaves) -> None:
    for key, hybrid in ((f"input_{_HYBRID}", True), (f"input_{_TEXT_ONLY}", False)):
        case.expect(key, fill(template, sample["seq_name"], sample["cans_name"], sample["correct_answer"], hybrid))


def _check_curriculum(step: Leaves) -> None:
    draw, counter = torch.tensor(step["p"], dtype=torch.float64), torch.tensor(step.whole_number("cur_step"))
    hybrid = bool(is_hybrid(draw, counter, step.whole_number("max_step")))
    step.expect("variant", _HYBRID if hybrid else _TEXT_ONLY)
    # a text-only prompt holds no projected embedding: tests/teacher/test_title_training.py sees the projector rest
    step.expect("projector_trainable", hybrid)
    _finish(step)


# -------------------------------------------------------------------------------------------------------------- tokens


def check_label_mask(sources: Sources, file: Path, tokenizer: Path, samples: Path) -> None:
    """Prompts and answers as our pieces give them: token ids, masks, labels, where embeddings stand."""
    content = sources.json(file)
    named = json.loads(samples.read_text(encoding="utf-8"))["samples"]
    read = _tokenizer(sources, tokenizer)
    batches = [_leaves(row, f"batch {place}") for place, row in enumerate(content["batches"])]
    prompts = _prompts(content["template"], read, batches, named)
    read.add_tokens([AddedToken(TARGET_MARK, special=True)])
    special = content.inside("special_ids")
    for text in special:
        special.expect(text, read.convert_tokens_to_ids(text))
    content.expect("vocab_size", len(read))
    for batch in batches:
        _check_batch(batch, prompts)
        _finish(batch)
    asked = content.inside("inference")
    (shown, *_) = [batch for batch in batches if batch["mode"] == _HYBRID]
    # published prompts are padded on the right in generation too; ours on the left, so that the last word is a word
    inference = prompts.ask(_question(shown, prompts.num_items), left=False)
    asked.expect("input_ids", inference.token_ids.tolist())
    asked.expect("attention_mask", inference.attention_mask.tolist())


def _tokenizer(sources: Sources, file: Path) -> PreTrainedTokenizerFast:
    config = sources.json(file.parent / "tokenizer_config.json")
    require(config["add_bos_token"] is True and config["add_eos_token"] is False, "texts begin with BOS and end open")
    require("Llama" in config["tokenizer_class"] and config["model_max_length"] > 0, "tokenizer_class")
    tokenizer = load_tokenizer(file, config["bos_token"], config["eos_token"], config["unk_token"])
    sources.whole(file)
    tokenizer.add_special_tokens({"pad_token": _PAD})
    return tokenizer


def _prompts(
    template: str, tokenizer: PreTrainedTokenizerFast, batches: Sequence[Leaves], samples: Sequence[Mapping[str, Any]]
) -> TitlePrompts:
    """Our prompts over a catalogue in which the batches' ids have their samples' titles."""
    padding = max(max(row) for batch in batches for row in [*batch["seq"], *batch["cans"]])
    short = any(length < len(row) for b in batches for row, length in zip(b["seq"], b["len_seq"], strict=True))
    items = padding if short else padding + 1
    titles = ["-"] * items
    for batch in batches:
        for row, sequence, candidates in zip(batch["rows"], batch["seq"], batch["cans"], strict=True):
            sample = samples[row["sample_index"]]
            for ids, names in ((sequence, sample["seq_name"]), (candidates, sample["cans_name"])):
                for item, name in zip(ids, names, strict=False):
                    titles[item] = name
            titles[sample["item_id"]] = sample["correct_answer"]
    width = max(len(row) for batch in batches for row in batch["seq"])
    settings = PromptSettings(history_titles=width, title_tokens=_ENDLESS, max_tokens=_ENDLESS)
    catalogue = IdMap(tuple(map(str, range(items))), tuple(titles))
    return TitlePrompts(catalogue, tokenizer, settings, TitleSettings(answer="as_released"), template=template)


def _question(batch: Leaves, num_items: int) -> Question:
    candidates = torch.tensor(batch["cans"])
    beyond = torch.arange(candidates.shape[1]) >= torch.tensor(batch["len_cans"]).unsqueeze(1)
    return Question(
        torch.tensor(batch["seq"]), torch.tensor(batch["len_seq"]), candidates.masked_fill(beyond, num_items)
    )


def _check_batch(batch: Leaves, prompts: TitlePrompts) -> None:
    hybrid = {_HYBRID: True, _TEXT_ONLY: False}[batch["mode"]]
    question, target = _question(batch, prompts.num_items), torch.tensor(batch["item_id"])
    (token_ids, mask, items), labels = prompts.answered(question, target, hybrid)
    special = len(prompts.before)
    counts, answers = prompts.token_counts(question) - special, prompts.answer_sizes[target] - special
    for place, row in enumerate(batch["rows"]):
        found = _leaves(row, f"{batch.label} row {place}")
        require(found.whole_number("sample_index") >= 0, "sample_index")
        found.expect("n_prompt_tokens", int(counts[place]))
        found.expect("n_answer_tokens", int(answers[place]))
        found.expect("input_ids", token_ids[place].tolist())
        found.expect("tokens", prompts.tokenizer.convert_ids_to_tokens(token_ids[place].tolist()))
        found.expect("attention_mask", mask[place].tolist())
        found.expect("targets", labels[place].tolist())
        # one longer than the tokens: shifted by one, it is where the labels are
        found.expect("token_type_ids", [0, *(labels[place] != IGNORED).long().tolist()])
        lists = (question.history[place], question.candidates[place])  # type: ignore[index]
        for name, mark, listed in zip(("history", "candidate"), (PLACEHOLDER, CANDIDATES_MARK), lists, strict=True):
            _check_positions(found, f"{name}_positions", prompts, mark, token_ids[place], items[place], listed)
        _finish(found)
    require(hybrid or bool((token_ids == prompts.plain_id).any()), f"text-only prompts hold {PLAIN_MARK}")


def _check_positions(
    row: Leaves,
    name: str,
    prompts: TitlePrompts,
    mark: str,
    token_ids: torch.Tensor,
    items: torch.Tensor,
    listed: torch.Tensor,
) -> None:
    """Where the placeholders of history or candidates stand, and that the k-th belongs to the k-th item."""
    places = (token_ids == prompts.tokenizer.convert_tokens_to_ids(mark)).nonzero().flatten()
    row.expect(name, places.tolist())
    wanted = listed[listed != prompts.num_items][: len(places)]
    require(torch.equal(items[places], wanted), f"{row.label} {name}: embeddings of other items")


# --------------------------------------------------------------------------------------------------- rates and answers


def check_lr_schedule(sources: Sources, file: Path) -> None:
    """Learning rates of projector, gate and experts at some steps of some runs."""
    content = sources.json(file)
    for name in content:
        run = content.inside(name)
        peak, steps = run["lr"], run.whole_number("max_step")
        run.expect("warmup_steps", int(TeacherTrainSettings().warmup_share * steps))
        settings = TeacherSettings(
            objective="title_lm",
            train=TeacherTrainSettings(loop=LoopSettings(monitor=TITLE_MONITOR)),
            title=TitleSettings(
                curriculum="as_released", minimum_rate=run["min_lr"] / peak, start_rate=run["warmup_start_lr"] / peak
            ),
        )
        factors = (1.0, settings.gate.learning_rate_factor, 1.0)
        steps_per_epoch = 0 if run.whole_number("epoch") else steps + 1  # none of the steps, or all, in the first epoch
        for step, wanted in zip(run["steps"], run["lrs_projector_router_llm"], strict=True):
            rate = title_rate(settings, steps, steps_per_epoch, step)
            for factor, want in zip(factors, wanted, strict=True):
                got = peak * factor * rate
                require(abs(got - want) <= FLOAT64 * want, f"{name} step {step}: {got!r} is not {want!r}")


def check_hit_ratio(sources: Sources, file: Path) -> None:
    """Which generations are valid and correct, what they add up to, and what of a text is the answer."""
    content = sources.json(file)
    judged = []
    for place, row in enumerate(content["rows"]):
        found = _leaves(row, f"row {place} ({row.get('note', '')})")
        judgement = judge_answer(found["generate"], found["real"], found["cans"])
        found.expect("valid", judgement.valid)
        found.expect("correct", judgement.correct)
        found.get("note", "")
        _finish(found)
        judged.append(judgement)
    totals = content.inside("totals")
    for name in totals:
        total = totals.inside(name)
        ratio = answer_hit_ratio([judged[row] for row in total["rows"]])
        for key, got in (("valid_ratio", ratio.valid_ratio), ("hr1", ratio.of_valid), ("metric", ratio.of_all)):
            require(abs(got - total[key]) <= FLOAT64, f"{name} {key}: {got!r} is not {total[key]!r}")
    for row in content["first_line_rule"]:
        rule = _leaves(row, "first_line_rule")
        rule.expect("kept", answer_of(rule["raw"]))
        _finish(rule)
