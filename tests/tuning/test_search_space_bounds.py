"""Search spaces that would fail at the first draw, would change nothing, or are larger than anyone can train."""

from __future__ import annotations

import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from src.config.reading import read_settings
from src.core.errors import ConfigError
from src.core.paths import REPOSITORY
from src.core.settings import deciding, nested_plain
from src.distill.settings import terms
from src.pipeline.settings import ExperimentSettings
from src.student.models import closed_forms, student_settings
from src.teacher.settings import training_settings
from src.tuning.preflight import prepare_space
from src.tuning.ranges import range_problem
from src.tuning.read_keys import read_where, unread
from src.tuning.search_settings import SearchSettings, TuneSettings, experiment
from src.tuning.search_space import (
    CategoricalParameter,
    FloatParameter,
    IntParameter,
    SearchSpace,
    flatten,
)
from src.tuning.settings import TuningSettings
from src.tuning.space_document import load_search_space


@pytest.fixture(scope="module")
def settings() -> ExperimentSettings:
    return experiment(read_settings("tune", [], TuneSettings)[0])


def said(tmp_path: Path, settings: ExperimentSettings, parameters: str, stage: str = "student") -> str:
    """What loading a document with these parameters says; empty where it is accepted."""
    path = tmp_path / "space.yaml"
    path.write_text(f"stage: {stage}\nmetric: ndcg_20\nparameters:\n{parameters}", encoding="utf-8")
    try:
        load_search_space(path, nested_plain(settings), ("ndcg_20",))
    except ConfigError as error:
        return str(error)
    return ""


def plain_student(name: str) -> dict[str, Any]:
    """The settings of a student by default."""
    return asdict(student_settings(name))


# ------------------------------------------------------------------------------------------------------------ ranges


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("student.dropout: {type: float, low: 0.0, high: 0.5, step: 1.0e-300}", "a step this fine makes more than"),
        ("student.weight_decay: {type: float, low: -1.0e+308, high: 1.0e+308}", "is no finite number → narrow it"),
        ("student.weight_decay: {type: float, low: 0.0, high: .inf}", "high = inf: Input should be a finite number"),
        ("student.weight_decay: {type: float, low: .nan, high: 1.0}", "low = nan: Input should be a finite number"),
        ("student.weight_decay: {type: float, low: 0.0, high: 1.0, step: .nan}", "step = nan: Input should be"),
        ("student.weight_decay: {type: float, low: 0.0, high: 1e400}", "high = inf: Input should be a finite number"),
        ("student.width: {type: int, low: 8, high: 1180591620717411303424}", "whole numbers must lie between"),
        ("student.width: {type: int, low: -9999999999999999999999, high: 64}", "whole numbers must lie between"),
        ("student.width: {type: categorical, choices: [32, .inf]}", "choices.1 = inf"),
        ("student.width: {type: categorical, choices: [32, 32.0]}", "names a choice twice"),
        ("student.width: {type: categorical, choices: [1, true]}", "names a choice twice"),
    ],
)
def test_a_range_that_nothing_can_be_drawn_from(tmp_path, settings, parameter: str, message: str) -> None:
    found = said(tmp_path, settings, f"  {parameter}\n")
    assert message in found
    assert found.startswith("space.yaml: ")
    assert found.count("\n") == 0  # one finding, told once


@pytest.mark.parametrize(
    ("low", "high", "log", "step", "whole"),
    [
        (0.0, 1.0, False, None, False), (3e-4, 1e-2, True, None, False), (0.1, 0.1, False, None, False),
        (0.0, 0.5, False, 0.001, False), (1, 200, True, 1, True), (5, 5, False, 1, True), (8, 64, False, 8, True),
    ],
)  # fmt: skip
def test_a_range_that_people_write(low: float, high: float, log: bool, step: float | None, whole: bool) -> None:
    assert range_problem(low, high, log, step, whole) is None


def test_a_look_at_a_range_says_nothing_of_optunas_own(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(optuna.logging.get_logger("optuna").handlers[0], "emit", lambda line: said.append(line.msg))
    optuna.logging.set_verbosity(optuna.logging.INFO)  # as it is imported
    assert range_problem(0.0, 1.0, False, None, False) is None
    assert said == []


def test_an_endless_document_is_read_no_further_than_its_bound(tmp_path, settings) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("# " + "x" * 3_000_000, encoding="utf-8")
    with pytest.raises(ConfigError, match="must not be longer than"):
        load_search_space(path, nested_plain(settings), ("ndcg_20",))


def test_an_alias_bomb_is_a_finding_like_any_other(tmp_path, settings) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    path = tmp_path / "space.yaml"
    path.write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="tuning.search_space space.yaml"):
        prepare_space(settings, TuningSettings(search_space=path), "student", "student")


_FOREIGN = (
    "null", "[]", "{}", ".nan", "1e309", "true", "&a ", "*a", "<<: ", "!!set", "2024-13-01", "!!binary x", "9" * 5_000,
    "when: {}", "!!python/name:os.system", "? ", "- ", "1:30", "\x00", "'",
)  # fmt: skip


def test_a_mutated_document_is_read_or_refused_and_nothing_else(tmp_path, settings) -> None:
    draws, config, path = random.Random(0), nested_plain(settings), tmp_path / "space.yaml"
    shipped = [file.read_text(encoding="utf-8") for file in sorted((REPOSITORY / "search_spaces").glob("*.yaml"))]
    refused = 0
    for _ in range(300):
        text = draws.choice(shipped)
        for _ in range(draws.randint(1, 3)):
            at = draws.randrange(len(text) + 1)
            text = text[:at] + draws.choice(_FOREIGN) + text[at + draws.randint(0, 12) :]
        path.write_text(text, encoding="utf-8")
        try:
            load_search_space(path, config, ("ndcg_20", "hit_ratio_1"))
        except ConfigError:
            refused += 1
    assert 200 < refused < 300


# ------------------------------------------------------------------------------------------------- what nothing reads


@pytest.mark.parametrize(
    ("stage", "parameters", "message"),
    [
        ("distill", "  student.dro_weight: {type: float, low: 0.0, high: 1.0}\n", "search distill.alpha instead"),
        ("distill", "  student.dro_beta: {type: float, low: 0.5, high: 2.0}\n", "search distill.beta instead"),
        ("distill", "  student.threads: {type: int, low: 1, high: 4}\n", "set tuning.cpu_per_trial instead"),
        ("student", "  student.threads: {type: int, low: 1, high: 4}\n", "set tuning.cpu_per_trial instead"),
        (
            "student",
            "  student.loop.checkpoint_minutes: {type: float, low: 1.0, high: 9.0}\n",
            "decides nothing of what a trial learns",
        ),
        ("distill", "  student.prior_folds: {type: int, low: 2, high: 5}\n", "is the same for every trial"),
        ("distill", "  student.prior_minutes: {type: float, low: 1.0, high: 9.0}\n", "is the same for every trial"),
        ("student", "  student.prior_gb: {type: float, low: 1.0, high: 9.0}\n", "is the same for every trial"),
        ("teacher", "  teacher.memory_probe: {type: int, low: 1, high: 9}\n", "is the same for every trial"),
        (
            "student",
            "  student.graphs: {type: categorical, choices: [auto, 'off']}\n",
            "decides nothing of what a trial learns",
        ),
        (
            "teacher",
            "  teacher.compile: {type: categorical, choices: [true, false]}\n",
            "decides nothing of what a trial learns",
        ),
        (
            "teacher",
            "  teacher.gradient_checkpointing: {type: categorical, choices: [true, false]}\n",
            "decides nothing of what a trial learns",
        ),
        ("student", "  student.prior: {type: categorical, choices: [none, linear]}\n", "is the same for every trial"),
        (
            "distill",
            "  distill.soft_temperature: {type: float, low: 1.0, high: 4.0}\n",
            "distill.soft_weight is above 0",
        ),
        ("distill", "  distill.rce_pool: {type: int, low: 10, high: 90}\n", "only where distill.rce_weight is above 0"),
        ("distill", "  distill.text_dropout: {type: float, low: 0.1, high: 0.5}\n", "distill.text_weight is above 0"),
        (
            "distill",
            "  student.unseen_negatives: {type: categorical, choices: [true, false]}\n",
            "is read only where distill.text_prior is above 0, or where distill.text_weight is above 0",
        ),
        (
            "distill",
            "  distill.alpha: {type: float, low: 0.0, high: 0.0}\n"
            "  distill.dro_weighting: {type: categorical, choices: [per_sample, product]}\n",
            "is read only where distill.alpha is above 0",
        ),
        ("student", "  student.negatives: {type: int, low: 1, high: 9}\n", "is read only where student.loss = bce"),
        ("student", "  student.dro_beta: {type: float, low: 0.5, high: 2.0}\n", "student.dro_weight is above 0"),
        (
            "distill",
            "  active.policy: {type: categorical, choices: [all, kl_divergence]}\n"
            "  active.rank_threshold: {type: int, low: 1, high: 9}\n",
            "is read only where active.policy = ground_truth_error",
        ),
        (
            "distill",
            "  distill.lam: {type: float, low: 0.0, high: 0.0}\n"
            "  distill.temperature: {type: float, low: 0.5, high: 2.0}\n",
            "is read only where distill.lam is above 0, or where distill.embedding_loss_weight is above 0, or where "
            "distill.soft_weight is above 0, or where distill.rce_weight is above 0",
        ),
        ("teacher", "  teacher.gate.hidden: {type: int, low: 8, high: 64}\n", "where teacher.gate.kind = mlp"),
        ("teacher", "  teacher.title.start_rate: {type: float, low: 0.1, high: 0.2}\n", "teacher.objective = title_lm"),
        ("teacher", "  teacher.head.sharpness: {type: float, low: 0.5, high: 2.0}\n", "teacher.head.init = title"),
    ],
)
def test_a_key_that_no_trial_reads(tmp_path, settings, stage: str, parameters: str, message: str) -> None:
    found = said(tmp_path, settings, parameters, stage)
    assert message in found
    assert found.count("\n") == 0


@pytest.mark.parametrize(
    ("stage", "parameters"),
    [
        ("student", "  student.heads: {type: categorical, choices: [1, 2]}\n"),
        ("student", "  student.blocks: {type: int, low: 1, high: 3}\n"),
        (
            "distill",
            "  distill.lam: {type: float, low: 0.0, high: 0.0}\n"
            "  distill.soft_weight: {type: float, low: 0.0, high: 1.0}\n"
            "  distill.candidate_topk: {type: int, low: 5, high: 10}\n",
        ),
        (
            "student",
            "  student.dro_weight: {type: float, low: 0.0, high: 0.5}\n"
            "  student.dro_beta: {type: float, low: 0.5, high: 2.0}\n",
        ),
        ("distill", "  distill.temperature: {type: float, low: 0.5, high: 2.0}\n"),
        (
            "distill",
            "  active.policy: {type: categorical, choices: [all, 'own.module:policy']}\n"
            "  active.kl_threshold: {type: float, low: 0.1, high: 1.0, when: {active.policy: 'own.module:policy'}}\n",
        ),
    ],
)
def test_a_key_that_some_trial_reads(tmp_path, settings, stage: str, parameters: str) -> None:
    assert said(tmp_path, settings, parameters, stage) == ""


def test_what_decides_how_long_a_training_takes_may_be_searched_where_that_counts(tmp_path, settings) -> None:
    path = tmp_path / "space.yaml"
    parameters = {"student.graphs": {"type": "categorical", "choices": ["auto", "off"]}}
    head = {"stage": "student", "metric": "ndcg_20", "also": {"seconds": "minimize"}}
    path.write_text(yaml.safe_dump({**head, "parameters": parameters}))
    assert list(load_search_space(path, nested_plain(settings), ("ndcg_20",)).parameters) == ["student.graphs"]


@pytest.mark.parametrize("stage", ["student", "teacher"])
def test_what_no_key_of_a_stage_holds_is_not_searched(tmp_path, settings, stage: str) -> None:
    decides = {"student": lambda: deciding(settings.student), "teacher": lambda: training_settings(settings.teacher)}
    left_out = flatten(nested_plain(settings)[stage]).keys() - flatten(decides[stage]()).keys()
    assert {"student": "graphs", "teacher": "compile"}[stage] in left_out
    accepted = [
        key
        for key in sorted(left_out)
        if not said(tmp_path, settings, f"  {stage}.{key}: {{type: categorical, choices: [1]}}\n", stage)
    ]
    assert accepted == []


@pytest.mark.parametrize("option", ["graphs", "threads", "checkpoint_minutes"])
def test_an_option_of_an_own_student_may_be_called_like_what_decides_nothing(option: str) -> None:
    assert unread("student", f"student.options.{option}", lambda key: ()) is None
    assert unread("student", f"student.{option}", lambda key: ()) is not None


@pytest.mark.parametrize(("weight", "told"), [("", "only where student.text_weight is above 0"), ("0.1", "")])
def test_a_closed_forms_own_keys_are_looked_at_too(tmp_path, weight: str, told: str) -> None:
    chosen = ["student=linear", *([f"student.text_weight={weight}"] if weight else [])]
    linear = experiment(read_settings("tune_student", chosen, SearchSettings)[0])
    found = said(tmp_path, linear, "  student.text_rarity: {type: float, low: 0.0, high: 1.0}\n")
    assert told in found
    assert bool(found) == bool(told)


def test_every_key_that_is_read_here_and_there_exists(settings) -> None:
    known = {key for one in closed_forms() for key in flatten({"student": plain_student(one)})}
    known |= flatten(nested_plain(settings)).keys()
    groups = {key.rsplit(".", n)[0] for key in known for n in range(1, key.count(".") + 1)}
    found = read_where()
    switches = {switch.key for lists in found.values() for alternatives in lists for switch in alternatives}
    assert (found.keys() | switches) - known - groups == set()


def test_a_key_of_another_architecture_is_no_key(tmp_path, settings) -> None:
    found = said(tmp_path, settings, "  student.num_filters: {type: int, low: 4, high: 16}\n")
    assert "student.num_filters" in found
    assert "is no key of the configuration" in found


def test_where_the_terms_keys_are_read_follows_from_the_terms() -> None:
    for term in terms():
        for key in term.own_keys():
            lists = read_where().get(f"distill.{key}", ())
            switches = [{switch.key for switch in alternatives} for alternatives in lists]
            own = {f"distill.{switch}" for switch in term.switches}
            if key in term.switches:
                assert switches == []
            elif key in term.shared:
                assert own < switches[-1]
            else:
                assert switches[-1] == own
            assert len(switches) == (0 if key in term.switches else 1 + (key in term.also_needs))


# -------------------------------------------------------------------------------------------------------- nested keys


def test_nested_parameters_are_told_to_be_dotted(tmp_path, settings) -> None:
    nested = "  student:\n    dropout: {type: float, low: 0.0, high: 0.5}\n"
    found = said(tmp_path, settings, nested)
    assert "parameters.student = " in found
    assert "write dotted keys: student.dropout: {type: ..., ...}" in found
    deeper = "  student:\n    loop:\n      batch_size: {type: categorical, choices: [64, 128]}\n"
    assert "write dotted keys: student.loop.batch_size: {" in said(tmp_path, settings, deeper)


@pytest.mark.parametrize(
    ("parameter", "message"),
    [
        ("student.dropout: [0.0, 0.5]", "must be a mapping → student.dropout: {type: float, low: ..., high: ...}"),
        ("student.dropout: uniform(0, 1)", "must be a mapping → student.dropout: {type: float, low: ..., high: ...}"),
        ("student.dropout: {type: uniform, low: 0, high: 1}", "needs a type → type: float, int or categorical"),
        ("student.dropout: {type: float, low: 0}", "parameters.student.dropout.high = None: is missing"),
        ("student.loss: {type: categorical, choices: [ce, null]}", "choices.1 = None: must be text, a finite number"),
        (
            "student.dropout: {type: float, low: 0, high: 1, when: {student.loss: [ce]}}",
            "when.student.loss = ['ce']: must be text, a finite number, true or false",
        ),
        ("int: {type: float, low: a, high: 1}", "parameters.int.low = 'a': Input should be a valid number"),
    ],
)
def test_what_people_write_elsewhere_is_answered_in_one_line(tmp_path, settings, parameter: str, message: str) -> None:
    found = said(tmp_path, settings, f"  {parameter}\n")
    assert message in found
    assert found.count("\n") == 0


def test_a_document_without_its_head_is_shown_where_one_is(tmp_path, settings) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("student.dropout: {type: float, low: 0, high: 0.5}\n", encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_search_space(path, nested_plain(settings), ("ndcg_20",))
    assert "space.yaml: stage = None: is missing → see search_spaces/student.yaml" in str(caught.value)


def test_a_parameter_without_a_type_is_told_the_types(tmp_path, settings) -> None:
    found = said(tmp_path, settings, "  student.dropout: {low: 0.0, high: 0.5}\n")
    assert "parameters.student.dropout = " in found
    assert "needs a type → type: float, int or categorical" in found


# --------------------------------------------------------------------------------------------------------------- grids


def space(**parameters: FloatParameter | IntParameter | CategoricalParameter) -> SearchSpace:
    return SearchSpace("student", {"ndcg_20": "maximize"}, parameters)


def whole(levels: int, **when: object) -> IntParameter:
    return IntParameter(type="int", low=1, high=levels, when=when)


def test_a_grid_of_fifty_million_points_is_counted_and_refused() -> None:
    fine = space(
        rate=FloatParameter(type="float", low=0.0001, high=0.01, step=0.0001),
        dropout=FloatParameter(type="float", low=0.0, high=0.5, step=0.001),
        decay=FloatParameter(type="float", low=0.0, high=0.001, step=0.000001),
    )
    points = 100 * 501 * 1001
    with pytest.raises(ConfigError, match=rf"search space = '{points:,} points'.*may have 10,000.*tuning.sampler=tpe"):
        fine.grid()


def test_a_conditional_grid_is_counted_by_hand() -> None:
    # a = 1: b has 4 values, and c, at b = 2 only, 5: 4 - 1 + 5 points; a = 2: d has 3; a = 3: one point
    conditional = space(a=whole(3), b=whole(4, a=1), c=whole(5, a=1, b=2), d=whole(3, a=2))
    assert conditional.grid_size() == (4 - 1 + 5) + 3 + 1 == len(conditional.grid())


def test_a_grid_is_counted_as_it_is_made() -> None:
    draws = random.Random(0)
    for _ in range(200):
        parameters: dict[str, IntParameter] = {}
        for name in "abcdef":
            others = draws.sample(sorted(parameters), k=min(len(parameters), draws.choice((0, 0, 1, 1, 2))))
            when = {other: draws.randint(1, parameters[other].high) for other in others}
            parameters[name] = whole(draws.randint(1, 3), **when)
        drawn = space(**parameters)
        assert drawn.grid_size() == len(drawn.grid())


def test_a_grid_of_many_conditions_is_refused_without_being_made() -> None:
    switches = {f"s{n}": whole(2) for n in range(60)}
    dependents = {f"d{n}": whole(2, **{f"s{n}": 1}) for n in range(60)}
    with pytest.raises(ConfigError, match=f"at least {2**60:,} points"):
        space(**switches, **dependents).grid_size()
    # the same behind one more condition, so that no product shows it at first
    hidden = {name: whole(2, first=1) for name in switches}
    behind = {f"d{n}": whole(2, first=1, **{f"s{n}": 1}) for n in range(60)}
    with pytest.raises(ConfigError, match="at least "):
        space(first=whole(2), **hidden, **behind).grid_size()


def test_the_largest_grid_that_is_trained() -> None:
    assert space(a=whole(100), b=whole(100)).grid_size() == 10_000
    with pytest.raises(ConfigError, match="10,001 points"):
        space(a=whole(10_001)).grid_size()
