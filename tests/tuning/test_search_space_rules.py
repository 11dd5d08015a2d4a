"""What a search-space document may not say, beside what `test_search_space.py` shows; and the one that is shipped."""

from __future__ import annotations

import optuna
import pytest

from src.config.reading import read_settings
from src.core.errors import ConfigError
from src.core.metrics import metric_names
from src.core.settings import nested_plain
from src.pipeline.settings import ExperimentSettings
from src.tuning.arms import check_arms
from src.tuning.preflight import check_resources, prepare_space
from src.tuning.search_settings import TuneSettings, experiment
from src.tuning.search_space import FloatParameter, IntParameter
from src.tuning.settings import RaySettings, TuningSettings
from src.tuning.space_document import load_search_space
from src.tuning.trial_values import configured_trial

HEAD = "stage: distill\nmetric: ndcg_20\nparameters:\n"


@pytest.fixture(scope="module")
def settings() -> ExperimentSettings:
    return experiment(read_settings("tune", [], TuneSettings)[0])


def document(tmp_path, content: str):
    path = tmp_path / "space.yaml"
    path.write_text(content, encoding="utf-8")
    return path


def refusal(tmp_path, settings: ExperimentSettings, content: str, **tuning: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        prepare_space(
            settings, TuningSettings(search_space=document(tmp_path, content), **tuning), "distill", "distill"
        )
    return caught.value


def test_the_shipped_document_fits_the_default_config(settings: ExperimentSettings) -> None:
    space = prepare_space(settings, TuningSettings(), "distill", "distill")
    assert list(space.parameters) == [
        "distill.lam",
        "distill.alpha",
        "distill.ed_weight",
        "distill.temperature",
        "active.policy",
        "active.kl_threshold",
        "active.rank_threshold",
    ]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(30):
        drawn = space.suggest(study.ask())
        assert ("active.kl_threshold" in drawn) == (drawn["active.policy"] == "kl_divergence")
        assert ("active.rank_threshold" in drawn) == (drawn["active.policy"] == "ground_truth_error")


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        # the field's own range and type
        ("  distill.lam: {type: float, low: -0.5, high: 1.0}\n", "distill.lam = -0.5: Input should be greater"),
        ("  student.dropout: {type: float, low: 0.0, high: 1.0}\n", "student.dropout = 1.0: Input should be less"),
        ("  active.policy: {type: categorical, choices: [all, none]}\n", "active.policy = 'none'"),
        ("  distill.candidate_topk: {type: float, low: 1.0, high: 2.5}\n", "distill.candidate_topk = 2.5"),
        ("  distill.dro_weighting: {type: float, low: 0.0, high: 1.0}\n", "distill.dro_weighting = 0.0"),
        # keys that no trial would read
        ("  teacher.lora.rank: {type: int, low: 4, high: 8}\n", "is the same for every trial"),
        ("  dataset.window: {type: int, low: 4, high: 8}\n", "is the same for every trial"),
        ("  seed: {type: int, low: 0, high: 8}\n", "is the same for every trial"),
        ("  evaluation.mask_history: {type: categorical, choices: [true, false]}\n", "is the same for every trial"),
        ("  distill.outputs_from: {type: categorical, choices: [a, b]}\n", "is the same for every trial"),
        # the first trial
        ("  distill.lam: {type: float, low: 0.1, high: 1.0}\n", "the no-distillation point"),
        ("  distill.ed_weight: {type: float, low: 0.001, high: 1.0, log: true}\n", "the no-distillation point"),
        ("  student.width: {type: categorical, choices: [32]}\n", "repeats the baseline, lies outside"),
        ("  distill.lam: {type: categorical, choices: [0.5, 1.0]}\n", "the no-distillation point"),
        # scales
        ("  distill.lam: {type: float, low: 0.0, high: 1.0, step: 0.3}\n", "a whole number of steps"),
        ("  distill.temperature: {type: float, low: 0.5, high: 1.5, log: true, step: 1.0}\n", "exclude each other"),
        ("  active.rank_threshold: {type: int, low: 1, high: 9, log: true, step: 2}\n", "exclude each other"),
        ("  distill.lam: {type: float, low: 0.0, high: 1.0, step: 0}\n", "greater than 0"),
        # form
        ("  distill.lam: {low: 0.0, high: 1.0}\n", "distill.lam"),
        ("  distill.lam: {type: float, low: 0.0}\n", "high"),
        ("  distill.lam: {type: float, low: 0.0, hgih: 1.0, high: 1.0}\n", "did you mean high?"),
        ("  distill.lam: {type: float, low: 0.0, high: 2024-01-01}\n", "2024-01-01"),
        ("  active.policy: {type: categorical, choices: []}\n", "choices"),
        ("  active.policy: {type: categorical, choices: [all, null]}\n", "choices"),
        ("  {}\n", "parameters"),
    ],
)
def test_a_parameter_that_cannot_be_searched(tmp_path, settings, parameters: str, said: str) -> None:
    assert said in str(refusal(tmp_path, settings, HEAD + parameters))


POLICY = "  active.policy: {type: categorical, choices: [all, kl_divergence, ground_truth_error]}\n"


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (
            "  active.kl_threshold: {type: float, low: 0.1, high: 1.0, when: {active.policy: kl_divergence}}\n"
            + POLICY,
            "must name a parameter that stands above",
        ),
        ("  distill.lam: {type: float, low: 0.0, high: 1.0, when: {distill.lam: 0.0}}\n", "stands above"),
        (
            "  active.rank_threshold: {type: int, low: 2, high: 8, step: 2}\n"
            "  distill.beta: {type: float, low: 1.0, high: 2.0, when: {active.rank_threshold: 5}}\n",
            "can never hold",
        ),
        (
            POLICY
            + "  active.kl_threshold: {type: float, low: 0.1, high: 0.1, when: {active.policy: kl_divergence}}\n"
            + "  distill.beta: {type: float, low: 1.0, high: 2.0, "
            + "when: {active.kl_threshold: 0.1, active.policy: all}}\n",
            "is searched only where active.policy = kl_divergence",
        ),
    ],
)
def test_a_condition_that_cannot_hold(tmp_path, settings, parameters: str, said: str) -> None:
    assert said in str(refusal(tmp_path, settings, HEAD + parameters))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "document = None"),
        ("- 1\n", "document"),
        ("stage: [\n", "is not valid YAML"),
        ("? [a, b]\n: 1\n", "is not valid YAML"),
        ("stage: teacher\nmetric: ndcg_20\nparameters:\n  distill.lam: {type: float, low: 0, high: 1}\n", "stage"),
        (HEAD.replace("stage", "stagee") + "  distill.lam: {type: float, low: 0, high: 1}\n", "did you mean stage?"),
        (HEAD + "  distill.lam: {type: float, low: 0, high: 1}\ndirection: minimize\n", "direction"),
        (HEAD.replace("ndcg_20", "ndcg_7") + "  distill.lam: {type: float, low: 0, high: 1}\n", "metric = 'ndcg_7'"),
    ],
)
def test_a_document_that_is_none(tmp_path, settings, content: str, said: str) -> None:
    assert said in str(refusal(tmp_path, settings, content))


def test_a_file_that_is_not_text_is_an_error_of_its_own(tmp_path, settings) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_search_space(path, nested_plain(settings), metric_names(settings.evaluation.ks))


def test_problems_of_options_and_document_are_reported_together(tmp_path, settings) -> None:
    content = HEAD + "  distill.lamb: {type: float, low: 0, high: 1}\n  distill.alpha: {type: float, low: 3, high: 1}\n"
    error = refusal(tmp_path, settings, content, metric="ndcg_7")
    said = str(error)
    assert len(error.problems) == 3
    for part in ("tuning.metric", "did you mean distill.lam?", "low must not exceed high"):
        assert part in said


def test_more_cores_than_the_machine_has() -> None:
    with pytest.raises(ConfigError, match="no trial could ever start"):
        check_resources(TuningSettings(cpu_per_trial=100_000.0), RaySettings())
    check_resources(TuningSettings(cpu_per_trial=100_000.0), RaySettings(address="head:6379"))


@pytest.mark.parametrize(
    ("stage", "document"), [("distill", "distill"), ("distill", "fair"), ("student", "student"), ("teacher", "teacher")]
)
def test_every_shipped_document_is_valid_and_of_its_stage(settings, stage, document) -> None:
    space = prepare_space(settings, TuningSettings(), stage, document)
    assert (space.stage, space.objectives) == (stage, {"ndcg_20": "maximize"})
    assert configured_trial(space, settings).keys() <= space.parameters.keys()
    if document == "fair":
        check_arms(space, settings)


def test_further_objectives(tmp_path, settings) -> None:
    content = HEAD.replace("parameters:", "also: {parameters: minimize, latency_ms: minimize}\nparameters:")
    content += "  student.width: {type: categorical, choices: [32, 64]}\n"
    path = document(tmp_path, content)
    with pytest.raises(ConfigError, match="early stopping needs a single objective"):
        prepare_space(settings, TuningSettings(search_space=path), "distill", "distill")
    space = prepare_space(settings, TuningSettings(search_space=path, pruner="none"), "distill", "distill")
    assert space.objectives == {"ndcg_20": "maximize", "parameters": "minimize", "latency_ms": "minimize"}
    unknown = document(tmp_path, content.replace("latency_ms", "latency"))
    with pytest.raises(ConfigError, match="must be another one of"):
        prepare_space(settings, TuningSettings(search_space=unknown, pruner="none"), "distill", "distill")


def test_a_document_of_another_stage(tmp_path, settings) -> None:
    path = document(tmp_path, HEAD + "  distill.lam: {type: float, low: 0, high: 1}\n")
    with pytest.raises(ConfigError, match="this command searches stage student"):
        prepare_space(settings, TuningSettings(search_space=path), "student", "student")


def test_a_grid_needs_steps(tmp_path, settings) -> None:
    path = document(tmp_path, HEAD + "  distill.lam: {type: float, low: 0, high: 1}\n")
    with pytest.raises(ConfigError, match="has no step, so it has no grid"):
        prepare_space(settings, TuningSettings(search_space=path, sampler="grid"), "distill", "distill")
    stepped = document(tmp_path, HEAD + "  distill.lam: {type: float, low: 0.1, high: 0.5, step: 0.1}\n")
    space = prepare_space(settings, TuningSettings(search_space=stepped, sampler="grid"), "distill", "distill")
    assert space.grid() == [{"distill.lam": value} for value in (0.1, 0.2, 0.3, 0.4, 0.5)]


def test_the_metric_can_be_chosen_by_option(tmp_path, settings) -> None:
    path = document(tmp_path, HEAD + "  distill.lam: {type: float, low: 0, high: 1}\n")
    assert prepare_space(settings, TuningSettings(search_space=path), "distill", "distill").metric == "ndcg_20"
    tuning = TuningSettings(search_space=path, metric="recall_5")
    assert prepare_space(settings, tuning, "distill", "distill").metric == "recall_5"


def test_bounds_and_grid_as_optuna_judges_them() -> None:
    stepped = FloatParameter(type="float", low=0.5, high=2.1, step=0.4)
    assert [stepped.holds(value) for value in (0.5, 0.9, 1.3, 2.1)] == [True] * 4
    assert not any(stepped.holds(value) for value in (0.4, 1.0, 2.5, True, "0.5", None))
    whole = IntParameter(type="int", low=1, high=7, step=3)
    assert [value for value in range(10) if whole.holds(value)] == [1, 4, 7]
    trial = optuna.create_study().ask({"x": optuna.distributions.FloatDistribution(0.5, 2.1, step=0.4)})
    assert stepped.holds(trial.params["x"])


@pytest.mark.parametrize(("teachers", "searched"), [(["llm"], True), (["titles"], True), (["linear"], False)])
def test_the_own_space_searches_no_embeddings_where_no_teacher_has_any(teachers: list[str], searched: bool) -> None:
    settings = read_settings("config", [f"distill.teachers={teachers}"], ExperimentSettings)[0]
    space = prepare_space(settings, TuningSettings(), "distill", "distill")
    assert ("distill.ed_weight" in space.parameters) == searched
    assert "distill.lam" in space.parameters


def test_a_named_space_that_searches_embeddings_which_no_teacher_has_is_refused(tmp_path) -> None:
    settings = read_settings("config", ["distill.teachers=[linear]"], ExperimentSettings)[0]
    error = refusal(tmp_path, settings, f"{HEAD}  distill.ed_weight: {{type: float, low: 0.0, high: 1.0}}\n")
    assert [(p.field, p.value, p.rule) for p in error.problems] == [
        ("space.yaml", "distill.ed_weight", "no teacher has embeddings")
    ]
