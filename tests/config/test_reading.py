"""What a command line may say, what is answered when it may not, and that nothing said is ever ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from src.config.overrides import expand_params, format_value
from src.config.reading import read_settings
from src.core.errors import ConfigError
from src.core.settings import nested_plain
from src.pipeline.evaluate_all import EvaluateSettings
from src.pipeline.settings import ExperimentSettings
from src.tuning.search_settings import TuneSettings


def read(*arguments: str) -> ExperimentSettings:
    return read_settings("config", arguments, ExperimentSettings)[0]


def refused(*arguments: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        read(*arguments)
    return caught.value


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("runtime.cache=~/cache", "quotes around a value"),
        # unknown or misspelt, with the nearest valid one
        ("student.widht=3", "student.widht': does not exist → did you mean student.width?"),
        ("student.lop.epochs=3", "did you mean student.loop.epochs?"),
        ("lam=0.3", "did you mean distill.lam?"),
        ("sed=1", "did you mean seed?"),
        ("student=gruu4rec", "did you mean gru4rec?"),
        ("studnet=gru4rec", "did you mean student?"),
        ("tuning=default", "'tuning': does not exist"),
        ("hydra.mode=MULTIRUN", "'hydra.mode': does not exist"),
        # wrong type
        ("student.width=abc", "student.width = 'abc': Input should be a valid integer"),
        ("student.width=true", "valid integer"),
        ("student.width=8.5", "valid integer"),
        ("student.width='8'", "valid integer"),
        ("student.loop=3", "student.loop = 3"),
        ("student.loop=null", "student.loop = None"),
        ("evaluation.ks=5", "evaluation.ks"),
        ("dataset=null", "dataset = 'None'"),
        # what another type was meant with
        (
            "dataset.name=2023",
            """dataset.name = 2023: Input should be a valid string → write it as text: dataset.name='"2023"'""",
        ),
        ("dataset.name=true", """write it as text: dataset.name='"true"'"""),
        ("dataset.min_rating=None", "write dataset.min_rating=null for nothing"),
        # out of range, and rules between fields
        ("student.width=0", "greater than or equal to 1"),
        ("distill.lam=-0.1", "greater than or equal to 0"),
        ("student.dropout=1.0", "less than 1"),
        ("distill.temperature=0", "greater than 0"),
        ("distill.lam=nan", "distill.lam"),
        ("student.loss=mse", "'ce', 'bce', 'sampled', 'gbce' or 'auto'"),
        ("student.loop.ema=1.0", "student.loop.ema = 1.0: Input should be less than 1"),
        ("student.loop.ema=-0.1", "greater than or equal to 0"),
        ("student.shared_negatives=0", "greater than or equal to 1"),
        ("student.negatives_power=1.5", "less than or equal to 1"),
        ("evaluation.sample_rows=-1", "greater than or equal to 0"),
        ("student.heads=3", "heads = 3 must divide width = 64"),
        ("evaluation.ks=[5]", "student.loop.monitor = 'ndcg_20' must be one of"),
        ("distill.candidate_topk=21", "must not exceed teacher.export.top_n"),
        # what is no single change of a value
        ("seed=1,2", "names several values"),
        ("student=sasrec,gru4rec", "names several values"),
        ("+seed=1", "can be changed, not added or removed"),
        ("~student.width", "can be changed, not added or removed"),
        ("student@teacher=gru4rec", "can be changed, not added or removed"),
        ("--multirun", "option = '--multirun': is unknown"),
        ("-m", "is unknown"),
        ("seed", "write key=value"),
        ("", "write key=value"),
    ],
)
def test_what_is_refused_and_what_is_said(argument: str, said: str) -> None:
    assert said in str(refused(argument))


def test_several_problems_are_reported_together() -> None:
    error = refused("student.widht=3", "student=gruu4rec", "distill.lam=-2", "seed=1.5", "--fast", "seed=1,2")
    assert {problem.field for problem in error.problems} == {
        "key",
        "student",
        "distill.lam",
        "seed",
        "option",
        "override",
    }


def test_an_override_is_never_ignored() -> None:
    settings = read("student.learning_rate=0.0123", "student=caser", "teacher.lora.rank=8", "evaluation.ks=[1,20]")
    assert settings.student.learning_rate == 0.0123
    assert settings.student.architecture == "caser"
    assert settings.teacher.lora.rank == 8
    assert settings.evaluation.ks == (1, 20)


def test_a_whole_number_is_a_float_where_one_is_wanted() -> None:
    assert read("distill.lam=2").distill.lam == 2.0


@pytest.mark.parametrize(
    "name",
    ["with space", "a=b", "名前", "it's", 'say "so"', "comma,comma", "a b=c{d}[e](f)", "back\\slash", "#1", "a:b"],
)
def test_any_path_survives_the_command_line(name: str) -> None:
    settings = read(f"dataset.root={format_value(f'/data/{name}')}")
    assert settings.dataset.root == Path(f"/data/{name}")


@pytest.mark.parametrize(
    "value",
    [1, -0.5, 1e-30, True, None, "text", "3", "true", "null", "a'b\"c", "a\\", 'a\\"', "", [1, 2], ["a b", "c,d"]],
)
def test_format_value_is_what_hydra_reads_back(value: Any) -> None:
    read_back = OverridesParser.create().parse_override(f"key={format_value(value)}").value()
    assert read_back == value
    assert type(read_back) is type(value)


def test_relative_paths_start_where_the_command_was_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    arguments = ["dataset.root=here/../data", 'runtime.cache="~/cache"', "teacher.llm=model"]
    settings = read(*arguments, "distill.outputs_from=outputs")
    assert settings.dataset.root == tmp_path / "data"
    assert settings.runtime.cache == Path.home() / "cache"
    assert settings.teacher.llm == str(tmp_path / "model")
    assert settings.distill.outputs_from == tmp_path / "outputs"
    assert read("teacher.llm=org/model").teacher.llm == "org/model"  # a hub id stays one
    assert read("distill.outputs_from=null").distill.outputs_from is None
    tuning = read_settings("tune", ["tuning.search_space=my.yaml"], TuneSettings)[0].tuning
    assert tuning.search_space == tmp_path / "my.yaml"
    results = read_settings("evaluate", ["results=[a,../b]"], EvaluateSettings)[0].results
    assert results == (tmp_path / "a", tmp_path.parent / "b")


# ------------------------------------------------------------------------------------------------------- params=FILE


def write_params(tmp_path: Path, content: object) -> str:
    file = tmp_path / "best_params.yaml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content, sort_keys=False), "utf-8")
    return f"params={file}"


def test_params_expand_and_the_command_line_wins(tmp_path: Path) -> None:
    given = write_params(tmp_path, {"student": "gru4rec", "distill.lam": 0.25, "seed": 7, "evaluation.ks": [5, 20]})
    settings = read(given, "seed=9")
    assert settings.student.architecture == "gru4rec"
    assert (settings.distill.lam, settings.seed, settings.evaluation.ks) == (0.25, 9, (5, 20))
    assert read("student=caser", given).student.architecture == "caser"
    assert expand_params([given, "seed=9"])[-1] == "seed=9"


def test_settings_survive_a_params_file(tmp_path: Path) -> None:
    root = tmp_path / "名前 = {1}"
    wanted = read(f"dataset.root={format_value(str(root))}", "distill.lam=1e-30", "dataset.min_rating=3.5")
    flat: dict[str, Any] = {}

    def flatten(content: dict[str, Any], prefix: str = "") -> None:
        for key, value in content.items():
            if isinstance(value, dict):
                flatten(value, f"{prefix}{key}.")
            else:
                flat[prefix + key] = value

    flatten(nested_plain(wanted))
    assert read(write_params(tmp_path, flat)) == wanted


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("a: [1\n", "cannot be read"),
        ("student: {width: 3}\n", "write nested keys with dots"),
        ("seed: 2024-01-01\n", "must be a number"),
        ("seed: 1\nseed: 2\n", "'seed' is used twice"),
        ("evaluation.ks: &a [5, *a]\n", "stands inside itself"),
        ("hydra.callbacks.a._target_: os.system\n", "hydra.callbacks.a._target_': is no key of the configuration"),
        ("hydra.run.dir: elsewhere\n", "is no key of the configuration"),
        ("hydra: default\n", "is no key of the configuration"),
        ("hydra/launcher: basic\n", "is no key of the configuration"),
        ("+hydra.searchpath: [x]\n", "is no key of the configuration"),
        ("--config-dir: x\n", "is no key of the configuration"),
        ("'seed=1 student.width': 3\n", "is no key of the configuration"),
        ("3: 4\n", "key 3 must be text"),
        ("student.widht: 3\n", "did you mean student.width?"),
        ("distill.lam: -1\n", "distill.lam = -1"),
    ],
)
def test_a_params_file_that_cannot_be_used(tmp_path: Path, content: str, said: str) -> None:
    assert said in str(refused(write_params(tmp_path, content)))


def test_a_params_file_of_laughs_is_refused_at_once(tmp_path: Path) -> None:
    lines = ["a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]" for a, b in zip("abcdefgh", "bcdefghi", strict=True)]
    assert "when its aliases are written out" in str(refused(write_params(tmp_path, "\n".join(lines))))


def test_numbers_of_a_params_file_are_numbers(tmp_path: Path) -> None:
    assert read(write_params(tmp_path, "student.learning_rate: 1e-4\n")).student.learning_rate == 1e-4


def test_a_params_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "cannot be read" in str(refused(f"params={tmp_path / 'nothing.yaml'}"))
    assert "cannot be read" in str(refused(f"params={tmp_path}"))
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in str(refused(f"params={tmp_path / 'binary'}"))
