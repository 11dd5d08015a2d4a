"""The study as the record of a search."""

from __future__ import annotations

from io import StringIO
from pathlib import Path

import optuna
import pytest
from optuna.artifacts import FileSystemArtifactStore, download_artifact, get_all_artifact_meta
from optuna.trial import TrialState
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from src.core.errors import ArtefactError
from src.core.result_files import JOURNAL
from src.pipeline.settings import without_paths
from src.pipeline.tracking import tracker_for
from src.tuning.dispatch import Search
from src.tuning.identity import check_content
from src.tuning.journal import open_journal
from src.tuning.progress import Baseline, SearchDisplay, epochs_left
from src.tuning.report import trials_frame, write_outcomes
from src.tuning.search_space import CategoricalParameter, FloatParameter, SearchSpace
from src.tuning.settings import TuningSettings
from src.tuning.study import SEARCH, Record
from src.tuning.warm_start import warm_trials
from tests.pipeline.toy import toy_settings

SPACE = SearchSpace(
    "distill",
    {"ndcg_20": "maximize"},
    {
        "distill.lam": FloatParameter(type="float", low=0.0, high=1.0),
        "active.policy": CategoricalParameter(type="categorical", choices=["all", "kl_divergence"]),
        "active.kl_threshold": FloatParameter(type="float", low=0.1, high=1.0, when={"active.policy": "kl_divergence"}),
    },
)
FIRST = {"distill.lam": 0.0, "active.policy": "all"}
SECOND = {"distill.lam": 0.5, "active.policy": "kl_divergence", "active.kl_threshold": 0.25}


def _record(folder: Path, seed: int = 1, **settings: object) -> Record:
    folder.mkdir(exist_ok=True)
    tuning = TuningSettings(**settings)  # type: ignore[arg-type]
    return Record.open(open_journal(folder), SEARCH, SPACE, tuning, seed, 9, "identity", [FIRST, SECOND], 1)


def _finish(record: Record, number: int, value: float) -> None:
    record.complete(number, [value], {"epochs": 1})


def test_a_trial_is_one_line_of_the_journal(tmp_path: Path) -> None:
    record = _record(tmp_path)
    journal = tmp_path / JOURNAL
    before = len(journal.read_text().splitlines())
    record.ask()
    record.ask()
    assert len(journal.read_text().splitlines()) == before + 2


def test_the_first_trial_has_the_given_values_and_proposals_depend_on_seed_and_number(tmp_path: Path) -> None:
    proposals = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        record = _record(tmp_path / name, seed)
        assert record.ask().params == FIRST
        assert record.ask().params == SECOND
        _finish(record, 0, 0.1)
        proposals.append([record.ask().params for _ in range(5)])
    assert proposals[0] == proposals[1]
    assert proposals[0] != proposals[2]


def test_a_study_has_a_note_as_the_dashboard_reads_it(tmp_path: Path) -> None:
    def note(record: Record) -> tuple[int, list[str]]:
        """Its version and its pieces, of which the dashboard shows the whole."""
        attributes = record.study._storage.get_study_system_attrs(record.study._study_id)
        names = [name for name in attributes if name.startswith("dashboard:note_str:")]
        assert names == [f"dashboard:note_str:{place}" for place in range(len(names))]
        return attributes["dashboard:note_ver"], [attributes[name] for name in names]

    record = _record(tmp_path)
    record.describe("it helped" * 300)
    assert note(record) == (1, [("it helped" * 300)[:2045], ("it helped" * 300)[2045:]])
    record.describe("it hurt")
    assert note(_record(tmp_path)) == (2, ["it hurt", ""])


def test_a_file_of_the_study_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for text in ("first", "second"):  # the second time as after more trials
        _record(tmp_path).attach("card.md", text, tmp_path / "files")
    record = _record(tmp_path)
    (attached,) = get_all_artifact_meta(record.study)
    assert (attached.filename, attached.mimetype) == ("card.md", "text/markdown")
    download_artifact(
        artifact_store=FileSystemArtifactStore(tmp_path / "files"), artifact_id=attached.artifact_id,
        file_path=str(tmp_path / "found.md"),
    )  # fmt: skip
    assert (tmp_path / "found.md").read_text() == "second"
    assert len(list((tmp_path / "files").iterdir())) == 1


def test_the_objectives_have_names_written_once(tmp_path: Path) -> None:
    """Optuna's dashboard and plots show them; an older study, which has none, gets them when it goes on."""
    record = _record(tmp_path / "new")
    assert record.study.metric_names == ["ndcg_20"]
    lines = (tmp_path / "new" / JOURNAL).read_text().count("\n")
    assert _record(tmp_path / "new").study.metric_names == ["ndcg_20"]
    assert (tmp_path / "new" / JOURNAL).read_text().count("\n") == lines
    (tmp_path / "old").mkdir()
    older = optuna.create_study(storage=open_journal(tmp_path / "old"), study_name=SEARCH, direction="maximize")
    older.set_user_attr("identity", "identity")
    assert _record(tmp_path / "old").study.metric_names == ["ndcg_20"]


def test_a_reason_of_failure_is_one_line(tmp_path: Path) -> None:
    record = _record(tmp_path)
    record.ask()
    record.fail(0, "first\n  second\n")
    assert record.trials()[0].user_attrs["failure"] == "first second"


def test_the_terminal_counts_trials_as_every_table_does(tmp_path: Path) -> None:
    record = _record(tmp_path)
    for _ in range(2):
        record.ask()
    _finish(record, 0, 0.25)
    screen = SearchDisplay([Search(record, trials=7, keep=1)], "no distillation")
    record.fail(1, "no luck")
    (search, trial), *rest = screen._untold()
    assert rest == []
    assert screen._line(search, record.trials()[0]) == "trial 0  ndcg_20 0.25  (no distillation; 2 of 7)"
    shown = "lam 0.5, policy kl_divergence, kl_threshold 0.25"
    assert screen._line(search, trial) == f"trial 1  failed: no luck  ({shown}; 2 of 7)"


def test_without_a_terminal_a_line_every_half_minute_says_where_the_search_is(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    record, now = _record(tmp_path), [0.0]
    for _ in range(2):
        record.ask()
    # the baseline trained four epochs of 15 seconds
    screen = SearchDisplay(
        [Search(record, trials=4, keep=1)], "no distillation", Baseline({"ndcg_20": 0.26}, 4, 60.0), "then more",
        clock=lambda: now[0],
    )  # fmt: skip
    monkeypatch.setattr("src.tuning.progress.is_terminal", lambda: False)
    caplog.set_level("INFO", logger="src")

    def lines(at: float) -> list[str]:
        now[0] = at
        caplog.clear()
        screen.update()
        return [message for message in caplog.messages if message.startswith("search:")]

    assert lines(29.0) == []
    record.write_value(1, 1, 0.2)
    # as many epochs as the baseline's: 4 + 3 of the two that run and 8 of those to come, two at a time
    left = "about 112 seconds left (estimated from the baseline)"
    assert lines(30.0) == [
        "search: 0 of 4 trials ended; trial 0 begins, trial 1 at epoch 1 of 9 (0.2000); baseline ndcg_20 0.2600; "
        f"{left}; then more"
    ]
    for epoch in (1, 2):
        record.write_value(0, epoch, 0.25)
    _finish(record, 0, 0.25)
    assert lines(59.0) == []
    # two epochs in the half minute since the first one; a trial takes two: one of trial 1, four of those to come
    best = "best ndcg_20 0.2500 (trial 0: no distillation)"
    assert lines(60.0) == [
        f"search: 1 of 4 trials ended; trial 1 at epoch 1 of 9 (0.2000); {best}; baseline ndcg_20 0.2600; "
        "about 75 seconds left; then more"
    ]


def test_the_searches_that_follow_have_a_count_and_a_pace_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("src.tuning.progress.is_terminal", lambda: False)
    caplog.set_level("INFO", logger="src")
    record, now = _record(tmp_path), [0.0]
    record.ask()
    screen = SearchDisplay([Search(record, 1, 1)], "no distillation", then="then more", clock=lambda: now[0])
    with screen:
        record.write_value(0, 1, 0.2)
        _finish(record, 0, 0.2)
        screen.update()
        (tmp_path / "second").mkdir()
        second = _record(tmp_path / "second")
        for _ in range(2):
            second.ask()
        second.fail(0, "before an interruption")
        screen.follow([Search(second, trials=3, keep=1, what="finalists", unit="training")])
        now[0] = 40.0
        screen.update()
    # what had ended is not told again, and the pace of the search before is not theirs
    assert caplog.messages == [
        "trial 0  ndcg_20 0.2  (no distillation; 1 of 1)",
        "going on after 1 ended trials",
        "finalists: 1 of 3 trainings ended; training 1 begins; time left: unknown",
    ]


def test_the_time_left_is_unknown_where_there_is_nothing_to_tell_it_from(tmp_path: Path) -> None:
    record = _record(tmp_path)
    record.ask()
    search = Search(record, trials=2, keep=1)
    assert "time left: unknown" in SearchDisplay([search])._now()
    # a model in closed form has no epochs
    assert "time left: unknown" in SearchDisplay([search], baseline=Baseline({}, 0, 0.1))._now()
    # nobody knows better: as many epochs as a trial may have
    assert epochs_left(search, None) == 2 * 9


def test_the_terminal_shows_every_running_trial_and_the_best_beside_the_baseline(tmp_path: Path) -> None:
    record, now = _record(tmp_path), [0.0]
    for _ in range(12):
        record.ask()
    screen = SearchDisplay(
        [Search(record, trials=20, keep=1)], "no distillation", Baseline({"ndcg_20": 0.26}, 4, 60.0),
        clock=lambda: now[0],
    )  # fmt: skip
    record.write_value(1, 1, 0.2)
    for number, value in ((0, 0.25), (2, 0.27)):
        record.write_value(number, 1, value)
        _finish(record, number, value)
    record.fail(3, "no luck")
    terminal = Console(width=72, file=StringIO(), force_terminal=False)
    terminal.print(screen._render())
    _, *lines = terminal.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(len(line) for line in lines) <= 72
    shown = [" ".join(line.split()) for line in lines]
    # the parameters alone are cut where there is no room
    assert shown[0] == "trial 1 epoch 1 of 9 ndcg_20 0.2000 lam 0.5, policy kl_divergence…"
    # 12 were begun and three have ended: nine run, eight are shown
    assert [line.split()[1] for line in lines[:8]] == ["1", "4", "5", "6", "7", "8", "9", "10"]
    assert shown[8] == "and 1 more"
    assert shown[9].startswith("best trial 2 ndcg_20 0.2700 lam ")
    assert shown[10] == "baseline ndcg_20 0.2600"
    assert shown[11] == "2 complete, 0 stopped early, 1 failed"


def test_optuna_opens_the_journal_and_finds_every_state(tmp_path: Path) -> None:
    record = _record(tmp_path)
    for _ in range(4):
        record.ask()
    record.write_value(0, 1, 0.3)
    _finish(record, 0, 0.3)
    record.write_value(1, 1, 0.2)
    record.prune(1)
    record.fail(2, "out of memory")
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(tmp_path / JOURNAL)))
    loaded = optuna.load_study(study_name=SEARCH, storage=storage)
    states = [trial.state for trial in loaded.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.RUNNING]
    assert loaded.trials[1].intermediate_values == {1: 0.2}
    assert loaded.trials[2].user_attrs["failure"] == "out of memory"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_fails_the_trial(tmp_path: Path, value: float) -> None:
    record = _record(tmp_path)
    record.ask()
    record.complete(0, [value], {})
    assert record.trials()[0].state == TrialState.FAIL
    assert str(value) in record.trials()[0].user_attrs["failure"]
    assert record.best() is None


def test_a_poor_trial_is_stopped_but_never_the_first(tmp_path: Path) -> None:
    record = _record(tmp_path, pruner_startup_trials=1, pruner_warmup_epochs=0)
    for _ in range(3):
        record.ask()
    record.write_value(1, 1, 0.5)
    _finish(record, 1, 0.5)
    assert not record.write_value(0, 1, 0.1)
    assert record.write_value(2, 1, 0.1)


def test_the_earlier_of_two_equal_trials_is_the_best_and_a_pruned_one_never(tmp_path: Path) -> None:
    record = _record(tmp_path)
    for _ in range(3):
        record.ask()
    _finish(record, 0, 0.4)
    _finish(record, 1, 0.4)
    record.write_value(2, 1, 0.9)
    record.prune(2)
    best = record.best()
    assert best is not None
    assert best.number == 0


def _searched(tmp_path: Path) -> Record:
    record = _record(tmp_path)
    record.ask()
    record.ask()
    for number, values in enumerate(([0.1, 0.3], [0.2, 0.15])):
        for epoch, value in enumerate(values, start=1):
            record.write_value(number, epoch, value)
        _finish(record, number, max(values))
    return record


def test_the_trials_table_has_every_parameter_and_state(tmp_path: Path) -> None:
    frame = trials_frame([Search(_searched(tmp_path), 2, 1)])
    assert frame["trial"].tolist() == [0, 1]
    assert frame["state"].tolist() == ["COMPLETE", "COMPLETE"]
    assert frame["ndcg_20"].tolist() == [0.3, 0.2]
    assert frame["epochs"].tolist() == [2, 2]
    assert frame["active.kl_threshold"].isna().tolist() == [True, False]


def test_hparams_read_back_conditional_columns_and_best_values(tmp_path: Path) -> None:
    record = _searched(tmp_path)
    write_outcomes(tracker_for("tensorboard", tmp_path), record, {0: {"ndcg_20": 0.25}})
    top = _summary(tmp_path / "tb")["_hparams_/experiment"]
    assert [info.name for info in top.experiment.hparam_infos] == [*SPACE.parameters, "state"]
    shown = ["epochs", "seconds", "best/ndcg_20", "test/ndcg_20"]
    assert [info.name.tag for info in top.experiment.metric_infos] == shown
    start = _summary(tmp_path / "tb" / "trial_0001")["_hparams_/session_start_info"].session_start_info
    assert start.hparams["active.kl_threshold"].number_value == 0.25
    assert start.hparams["active.policy"].string_value == "kl_divergence"
    assert start.hparams["state"].string_value == "complete"
    events = EventAccumulator(str(tmp_path / "tb" / "trial_0001"))
    events.Reload()
    assert [round(event.value, 6) for event in events.Scalars("validation/ndcg_20")] == [0.2, 0.15]
    assert round(events.Scalars("best/ndcg_20")[0].value, 6) == 0.2
    assert events.Scalars("epochs")[0].value == 2
    assert "test/ndcg_20" not in events.Tags()["scalars"]  # of the winner alone
    assert round(_events(tmp_path / "tb" / "trial_0000").Scalars("test/ndcg_20")[0].value, 6) == 0.25
    # written again, as after a resume, the table is another one and the curves are the same
    write_outcomes(tracker_for("tensorboard", tmp_path), record)
    events = _events(tmp_path / "tb" / "trial_0000")
    assert "test/ndcg_20" not in events.Tags()["scalars"]
    assert [(point.step, round(point.value, 6)) for point in events.Scalars("validation/ndcg_20")] == [
        (1, 0.1),
        (2, 0.3),
    ]


def _events(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events


def _summary(folder: Path) -> dict[str, plugin_data_pb2.HParamsPluginData]:
    events = EventAccumulator(str(folder))
    events.Reload()
    content = events.SummaryMetadata
    return {
        tag: plugin_data_pb2.HParamsPluginData.FromString(content(tag).plugin_data.content)
        for tag in events.PluginTagToContent("hparams")
    }


# ------------------------------------------------------------------------------------------------ what it learns from


def _about(folder: Path, **content: str) -> Record:
    folder.mkdir(exist_ok=True)
    return Record.open(open_journal(folder), SEARCH, SPACE, TuningSettings(), 1, 9, "identity", [], 1, content)


def test_a_search_over_other_content_is_refused_by_name(tmp_path: Path) -> None:
    _about(tmp_path, dataset="d1", split="s1").ask()
    assert len(_about(tmp_path, dataset="d1", split="s1").trials()) == 1
    with pytest.raises(ArtefactError, match="was started with another split: .*dataset.root"):
        _about(tmp_path, dataset="d1", split="s2")
    check_content(tmp_path, {"dataset": "d1"})
    with pytest.raises(ArtefactError, match="was started with another dataset"):
        check_content(tmp_path, {"dataset": "d2", "split": "s1"})
    check_content(tmp_path / "nothing was begun here", {"dataset": "d2"})


def test_a_search_is_not_known_by_where_things_lie(tmp_path: Path) -> None:
    first = toy_settings(tmp_path, "dataset.root=a", "teacher.llm=./a", "distill.outputs_from=a")
    moved = toy_settings(tmp_path / "x", "dataset.root=b", "teacher.llm=./b", "distill.outputs_from=b")
    assert without_paths(first) == without_paths(moved)
    assert first != moved
    other = toy_settings(tmp_path, "student.width=10")
    assert without_paths(other) != without_paths(first)


def test_a_result_that_is_no_search_cannot_warm_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "empty").mkdir()
    for name in ("file", "empty", "gone", "file/below"):
        with pytest.raises(ArtefactError, match="holds no study.journal"):
            warm_trials(tmp_path / name, SPACE, 3)
    (tmp_path / "empty" / JOURNAL).write_text("[]\n")
    with pytest.raises(ArtefactError, match="record 1 of 1 is damaged"):
        warm_trials(tmp_path / "empty", SPACE, 3)
    (tmp_path / "empty" / JOURNAL).write_text('{"op_code": 0}\n')
    with pytest.raises(ArtefactError, match="Optuna cannot read"):
        warm_trials(tmp_path / "empty", SPACE, 3)
    (tmp_path / "empty" / JOURNAL).write_text("")
    with pytest.raises(ArtefactError, match="its study cannot be read"):
        warm_trials(tmp_path / "empty", SPACE, 3)


def test_an_earlier_result_is_only_read(tmp_path: Path) -> None:
    record = _record(tmp_path)
    record.ask()
    _finish(record, 0, 0.5)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    (point,) = warm_trials(tmp_path, SPACE, 3)
    assert point == FIRST
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_failed_trials_metrics_that_are_no_numbers_do_not_make_the_journal_unreadable(tmp_path: Path) -> None:
    record = _record(tmp_path)
    record.ask()
    record.complete(0, [float("nan")], {"metrics": {"ndcg_20": float("nan")}, "seconds": 1.0})
    assert _record(tmp_path).trials()[0].state == TrialState.FAIL
