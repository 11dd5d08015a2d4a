"""The checks of `prompts` and `hr1` must be able to fail: one corrupted fact of every kind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import GOLDEN_VECTORS
from tests.golden.families import cases_of
from tests.golden.sources import GoldenMismatch, check_integrity
from tests.golden.test_the_checks import run_family, seal

FACTS: list[tuple[str, Sequence[str | int], Any]] = [
    ("prompts/prompts.json", ("cases", 3, "input_emb"), "Viewing log"),
    ("prompts/prompts.json", ("cases", 20, "input_ph"), "Viewing log"),
    ("prompts/prompts.json", ("cases", 0, "target_train"), "Moth Harbour"),
    ("prompts/prompts.json", ("extra_templates", 0, "input_ph"), "Target: Moth Harbour."),
    ("prompts/prompts.json", ("curriculum", 0, "variant"), "emb"),
    ("prompts/prompts.json", ("curriculum", 13, "projector_trainable"), False),
    ("prompts/prompts.json", ("samples", 0, "item_id"), 11),
    ("prompts/label_mask.json", ("special_ids", "[CansEmb]"), 421),
    ("prompts/label_mask.json", ("vocab_size",), 424),
    ("prompts/label_mask.json", ("template",), "List: [HistoryHere]. One of: [CansHere]."),
    ("prompts/label_mask.json", ("batches", 0, "rows", 0, "input_ids", 1), 288),
    ("prompts/label_mask.json", ("batches", 0, "rows", 0, "tokens", 1), "▁M"),
    ("prompts/label_mask.json", ("batches", 0, "rows", 0, "targets", 93), -100),
    ("prompts/label_mask.json", ("batches", 1, "rows", 2, "targets", 170), 420),
    ("prompts/label_mask.json", ("batches", 0, "rows", 0, "token_type_ids", 93), 1),
    ("prompts/label_mask.json", ("batches", 0, "rows", 2, "attention_mask", 170), 1),
    ("prompts/label_mask.json", ("batches", 0, "rows", 1, "n_prompt_tokens"), 165),
    ("prompts/label_mask.json", ("batches", 0, "rows", 1, "n_answer_tokens"), 4),
    ("prompts/label_mask.json", ("batches", 0, "rows", 1, "history_positions", 0), 26),
    ("prompts/label_mask.json", ("batches", 0, "rows", 2, "candidate_positions", 1), 81),
    ("prompts/label_mask.json", ("inference", "attention_mask", 0, 166), 1),
    ("prompts/label_mask.json", ("inference", "input_ids", 2, 0), 2),
    ("prompts/lr_schedule.json", ("train_movielens_sh_max137_epoch1", "lrs_projector_router_llm", 0, 1), 2.4e-06),
    ("prompts/lr_schedule.json", ("argparse_defaults_max1000_epoch0", "warmup_steps"), 49),
    ("prompts/lr_schedule.json", ("argparse_defaults_max1000_epoch0", "epoch"), 1),
    ("hr1/hr1.json", ("rows", 6, "valid"), True),
    ("hr1/hr1.json", ("rows", 2, "correct"), True),
    ("hr1/hr1.json", ("totals", "all", "hr1"), 0.375),
    ("hr1/hr1.json", ("totals", "only_invalid", "valid_ratio"), 1 / 3),
    ("hr1/hr1.json", ("totals", "only_valid", "metric"), 1.0),
    ("hr1/hr1.json", ("first_line_rule", 1, "kept"), "Quill"),
]


def copied(root: Path) -> Path:
    """A folder with both families and the manifest."""
    shutil.copytree(GOLDEN_VECTORS / "prompts", root / "prompts")
    shutil.copytree(GOLDEN_VECTORS / "hr1", root / "hr1")
    shutil.copy(GOLDEN_VECTORS / "MANIFEST.json", root)
    return root


@pytest.mark.parametrize(
    ("file", "place", "value"), FACTS, ids=[f"{file}-{'-'.join(map(str, place))}" for file, place, _ in FACTS]
)
def test_a_corrupted_fact_fails(tmp_path: Path, file: str, place: Sequence[str | int], value: Any) -> None:
    root = copied(tmp_path)
    content = json.loads((root / file).read_text(encoding="utf-8"))
    inner = content
    for key in place[:-1]:
        inner = inner[key]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    seal(root, file)
    family = file.split("/")[0]
    check_integrity(root, family)
    (case,) = [case for case in cases_of(root, family) if root / file in case.files]
    with pytest.raises(GoldenMismatch):
        case.run()


@pytest.mark.parametrize(
    ("file", "place"),
    [
        ("prompts/prompts.json", ("cases", 0)),
        ("prompts/label_mask.json", ("batches", 0, "rows", 0)),
        ("prompts/lr_schedule.json", ("argparse_defaults_max137_epoch0",)),
        ("hr1/hr1.json", ("rows", 0)),
    ],
)
def test_a_fact_that_no_check_knows_fails(tmp_path: Path, file: str, place: Sequence[str | int]) -> None:
    root = copied(tmp_path)
    content = json.loads((root / file).read_text(encoding="utf-8"))
    inner = content
    for key in place:
        inner = inner[key]
    inner["colour"] = "red"
    (root / file).write_text(json.dumps(content), encoding="utf-8")
    seal(root, file)
    with pytest.raises(GoldenMismatch, match="nobody checked .*colour"):
        run_family(root, file.split("/")[0])


def test_files_of_other_names_pass(tmp_path: Path) -> None:
    root = copied(tmp_path)
    for family, old, new in (
        ("prompts", "label_mask.json", "held_back.json"),
        ("prompts", "prompts.json", "words.json"),
        ("prompts", "lr_schedule.json", "rates.json"),
        ("hr1", "hr1.json", "answers.json"),
    ):
        (root / family / old).rename(root / family / new)
    for family in ("prompts", "hr1"):
        cases = cases_of(root, family)
        assert len(cases) == {"prompts": 3, "hr1": 1}[family]
        for case in cases:
            case.run()
