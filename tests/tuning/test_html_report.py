"""The report of a search: one file, the answer first, everything else in its order."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial

from src.core.errors import ArtefactError
from src.tuning.html_report import write_report
from src.tuning.html_report.figures import arms, learning_curves
from src.tuning.html_report.plots import history, importances, pareto, slices
from src.tuning.study_view import StudyView, read_studies
from tests.serving.browser import FOUND, Browser

LAM, POLICY, THRESHOLD = "distill.lam", "active.policy", "active.kl_threshold"
RATE = "student.learning_rate"
KINDS: dict[str, BaseDistribution] = {
    LAM: FloatDistribution(0.0, 1.0),
    POLICY: CategoricalDistribution(["all", "kl_divergence"]),
    THRESHOLD: FloatDistribution(0.01, 1.0, log=True),
    RATE: FloatDistribution(1e-4, 1e-1, log=True),
    "arm": CategoricalDistribution(["student", "ranking"]),
    "seed": IntDistribution(0, 9),
}
START = datetime(2026, 1, 2, 3, 4, 5)
MANIFEST = {"kind": "tune_distill", "started": "2026-01-02T03:04:05+0000", "seed": 7, "search": {"metric": "ndcg_20"}}
ORDER = ["Comparison", "Learning curves", "The search", "Trials", "Record"]

Trial = tuple[TrialState, Sequence[float] | None, Mapping[str, Any], Sequence[float], Mapping[str, Any]]


def trial(
    state: str,
    values: Sequence[float] | float | None = None,
    curve: Sequence[float] = (),
    seconds: float = 60,
    **more: Any,
) -> Trial:
    """A trial of ``lam`` unless ``params`` are given; ``more`` are user attributes."""
    params = more.pop("params", {LAM: 0.5})
    values = [values] if isinstance(values, float) else values
    if state == "COMPLETE":
        more = {"epochs": len(curve), "seconds": seconds, **more}
    return TrialState[state], values, params, curve, more


def add_study(folder: Path, trials: Sequence[Trial], name: str = "search", **options: Any) -> None:
    """A study in the folder's journal; trials start a minute apart and take two."""
    metrics = options.pop("metrics", ["ndcg_20"])
    directions = options.pop("directions", ["maximize"])
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    study.set_user_attr("metrics", metrics)
    for number, (state, values, params, curve, attributes) in enumerate(trials):
        frozen = create_trial(
            state=state,
            values=values,
            params=dict(params),
            distributions={key: KINDS[key] for key in params},
            intermediate_values=dict(enumerate(curve, start=1)),
            user_attrs=dict(attributes),
        )
        frozen.datetime_start = START + timedelta(minutes=number)
        frozen.datetime_complete = frozen.datetime_start + timedelta(minutes=2) if state.is_finished() else None
        study.add_trial(frozen)


PLAIN = [
    trial("COMPLETE", 0.25, [0.2, 0.25], params={LAM: 0.0, POLICY: "all"}),
    trial("COMPLETE", 0.31, [0.21, 0.31, 0.3, 0.29], params={LAM: 0.7, POLICY: "kl_divergence", THRESHOLD: 0.1}),
    trial("PRUNED", None, [0.123456], params={LAM: 0.1, POLICY: "all"}),
    trial("FAIL", None, [], params={LAM: 0.2, POLICY: "all"}, failure="<script>alert('x')</script> no memory"),
    trial("COMPLETE", 0.3, [0.22, 0.3, 0.29], params={LAM: 0.6, POLICY: "all"}),
    trial("COMPLETE", 0.29, [0.22, 0.28, 0.29], params={LAM: 0.4, POLICY: "all"}),
    trial("RUNNING", None, [0.17], params={LAM: 0.9, POLICY: "all"}),
]
COMPARISON = """model,split,examples,trials,recall_20,ndcg_20,hit_ratio_20
popularity,validation,10,1,0.1,0.05,0.1
baseline,validation,10,1,0.4,0.25,0.4
distilled,validation,10,7,0.5,0.31,0.5
popularity,test,10,1,0.1,0.04,0.1
baseline,test,10,1,0.4,0.24,0.4
distilled,test,10,7,0.5,0.27,0.5
"""


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A finished search with every optional file."""
    add_study(tmp_path, PLAIN)
    (tmp_path / "comparison.csv").write_text(COMPARISON)
    settings = "dataset:\n  name: toys\nstudent:\n  loop:\n    epochs: 10\ntuning:\n  trials: 7\n  sampler: tpe\n"
    (tmp_path / "settings.yaml").write_text(settings)
    (tmp_path / "metrics").mkdir()
    (tmp_path / "metrics" / "time.json").write_text('{"search_time": 3725.0}')
    (tmp_path / "test_openings.jsonl").write_text('{"time": "2026-01-02T04:00:00+0000", "reason": "the winner"}\n')
    return tmp_path


def page_of(folder: Path, manifest: Mapping[str, Any] = MANIFEST) -> str:
    return write_report(folder, manifest).read_text()


def prose(page: str) -> str:
    """The page without its scripts and styles, tags replaced by blanks."""
    bare = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", bare))


def drawn(page: str) -> list[list[dict[str, Any]]]:
    """The traces of every figure, as the page hands them to plotly.js."""
    starts = [match.start(1) for match in re.finditer(r'Plotly\.newPlot\(\s*"figure-\d+",\s*(\[)', page)]
    return [json.JSONDecoder().raw_decode(page, start)[0] for start in starts]


def search(folder: Path, name: str = "search") -> StudyView:
    return next(view for view in read_studies(folder, MANIFEST, None) if view.name == name)


def test_sections_stand_in_order_after_the_answer(plain: Path) -> None:
    page = page_of(plain)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ORDER
    assert page.index('id="answer"') < page.index("<h2>")
    assert prose(page).strip().startswith("Search over distillation, dataset toys")


def test_the_answer_names_the_winner_and_its_lead(plain: Path) -> None:
    text = prose(page_of(plain))
    # 0.31 / 0.25 = 1.24
    assert "Trial 1 is the best of 7 trials: NDCG@20 0.3100 on validation, 24.0 % above trial 0." in text
    # 2 + 4 + 1 + 0 + 3 + 3 + 1 epochs; four times 60 s, two minutes each of the pruned and of the failed one
    assert "7 trials trained 14 epochs in 8 minutes: 4 completed, 1 stopped early, 1 failed and 1 running." in text
    assert "The test split was opened 1 time: 2026-01-02 04:00:00+0000 for the winner." in text
    assert "search time 62 minutes" in text


def test_the_winner_is_the_trial_that_was_published(plain: Path) -> None:
    finalists = [{"trial": 4, "values": [0.29, 0.31], "mean": 0.3}, {"trial": 1, "values": [0.2, 0.3], "mean": 0.25}]
    page = page_of(plain, {**MANIFEST, "search": {"metric": "ndcg_20", "best_trial": 4, "finalists": finalists}})
    # 0.3 / 0.25 = 1.2
    assert (
        "Trial 4 is the best of 7 trials by the mean over other seeds: NDCG@20 0.3000 on validation, "
        "20.0 % above trial 0." in prose(page)
    )
    answer = page[page.index('id="answer"') : page.index("<nav>")]
    assert [prose(cell).strip() for cell in re.findall(r"<td.*?</td>", answer)] == ["0.6000", "all"]
    (marked,) = re.findall(r'<tr class="marked">\s*<td[^>]*>(\d+)</td>', page)
    assert marked == "4"


def test_the_verdict_is_the_headline(plain: Path) -> None:
    sentences = {"baseline": "it helped: 0.27 against 0.24.", "linear": "it cannot be told: 0.27 against 0.26."}
    verdicts = {name: {"sentence": sentence, "verdict": "helped"} for name, sentence in sentences.items()}
    (plain / "metrics" / "verdict.json").write_text(json.dumps({"against": verdicts}))
    page = page_of(plain)
    assert '<p class="headline">It helped: 0.27 against 0.24.</p>' in page
    assert prose(page).index("Trial 1 is the best") < prose(page).index("it cannot be told: 0.27 against 0.26.")


def test_the_page_loads_nothing_from_a_network(plain: Path) -> None:
    page = page_of(plain)
    bare = re.sub(r"<script>.*?</script>", "", page, count=1, flags=re.DOTALL)  # plotly.js, which is text, not a load
    links = re.findall(r"(?:src|href)\s*=\s*[\"']?([^\"'\s>]+)", bare)
    assert set(links) == set(re.findall(r"#\w+", " ".join(links)))  # places on the page itself
    assert "@import" not in bare
    assert not re.findall(r"url\(|https?://", bare)
    assert "default-src 'none'" in bare  # and the browser refuses what a later change might add


def test_figures_need_no_webgl(plain: Path) -> None:
    kinds = {trace["type"] for traces in drawn(page_of(plain)) for trace in traces}
    assert kinds == {
        "scatter",
        "bar",
    }  # plotly's WebGL kinds evaluate code, which the page's own policy forbids


def test_plotly_js_is_inlined_once(plain: Path) -> None:
    page = page_of(plain)
    assert page.count("plotly.js v") == 1
    assert 4_000_000 < len(page) < 6_000_000


def test_text_of_the_data_is_inert(plain: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    manifest = {**MANIFEST, "command": [evil], "kind": evil}
    page = page_of(plain, manifest)
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; no memory" in page
    assert evil not in page


def test_hostile_choices_and_studies_are_inert_in_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = "</script><b>x</b>"
    monkeypatch.setitem(KINDS, POLICY, CategoricalDistribution(["all", evil]))
    for name in ("a", evil):
        add_study(tmp_path, [trial("COMPLETE", 0.1 * i, [0.1], params={POLICY: evil}) for i in range(1, 6)], name)
    page = page_of(tmp_path)
    assert evil not in page
    assert "\\u003cb\\u003ex" not in page  # plotly would make it bold: its labels know a few tags
    assert "&lt;b&gt;x" in json.dumps(drawn(page))


def test_learning_curves_hold_the_values_of_pruned_trials(plain: Path) -> None:
    (panel,) = learning_curves([search(plain)])
    curves = [(line.name, list(line.x), list(line.y)) for line in panel.figure.data]
    assert curves[0] == ("stopped early", [1], [0.123456])
    assert curves[-1] == ("best", [1, 2, 3, 4], [0.21, 0.31, 0.3, 0.29])
    assert [name for name, _, _ in curves] == ["stopped early", "running", *["completed"] * 3, "best"]
    assert [line.name for line in panel.figure.data if line.showlegend] == [
        "stopped early",
        "running",
        "completed",
        "best",
    ]
    assert "kl_threshold 0.1" in panel.figure.data[-1].hovertemplate
    assert panel.words == "The best trial's curve: epoch 1 0.2100; epoch 2 0.3100; epoch 3 0.3000; epoch 4 0.2900"
    embedded = [
        trace["y"] for traces in drawn(page_of(plain)) for trace in traces if trace.get("name") == "stopped early"
    ]
    assert [0.123456] in embedded


def test_history_shows_the_best_so_far_and_the_value_without_distillation(plain: Path) -> None:
    figure = history([search(plain)], 0.25).figure
    dots, best = figure.data
    assert list(dots.x) == [0, 1, 4, 5]
    assert (
        dots.text[1]
        == "trial 1, complete<br>NDCG@20 0.3100<br>lam 0.7000<br>policy kl_divergence<br>kl_threshold 0.1000"
    )
    assert list(best.y) == [0.25, 0.31, 0.31, 0.31, 0.31, 0.31, 0.31]
    assert figure.layout.shapes[0].y0 == 0.25


def test_a_minimised_study_takes_the_least(tmp_path: Path) -> None:
    add_study(tmp_path, [trial("COMPLETE", value) for value in (3.0, 1.0, 2.0)], directions=["minimize"])
    best = search(tmp_path).best()
    assert best is not None
    assert best.number == 1
    assert list(history([search(tmp_path)], None).figure.data[1].y) == [3.0, 1.0, 1.0]


def test_conditional_parameters_have_their_own_place(plain: Path) -> None:
    panels = slices(search(plain))
    assert [panel.heading for panel in panels] == ["lam", "policy", "kl_threshold (1 of 4)"]
    dots, best = panels[0].figure.data
    assert dict(zip(dots.x, dots.y, strict=True)) == {0.0: 0.25, 0.7: 0.31, 0.6: 0.3, 0.4: 0.29}
    assert (list(best.x), list(best.y)) == ([0.7], [0.31])
    assert all("policy" in text for text in dots.text)  # every parameter, not only the panel's


def test_importances_cover_conditional_parameters_and_sum_to_one(tmp_path: Path) -> None:
    trials = [
        trial("COMPLETE", place / 20, params={LAM: place / 20, POLICY: "all" if place % 2 else "kl_divergence"})
        for place in range(20)
    ]
    trials += [trial("COMPLETE", 0.5, params={LAM: 0.5, POLICY: "kl_divergence", THRESHOLD: 0.1}) for _ in range(5)]
    add_study(tmp_path, trials)
    (panel,) = importances(search(tmp_path))
    (bars,) = panel.figure.data
    assert set(bars.y) == {"lam", "policy", "kl_threshold"}
    assert bars.y[-1] == "lam"
    assert sum(bars.x) == pytest.approx(1)
    assert panel.words.startswith("lam ")


def test_a_parameter_that_had_one_value_has_no_importance(tmp_path: Path) -> None:
    params = [{LAM: place / 20, POLICY: "all" if place % 2 else "kl_divergence", RATE: 0.01} for place in range(20)]
    add_study(tmp_path, [trial("COMPLETE", own[LAM], params=own) for own in params])
    (panel,) = importances(search(tmp_path))
    assert set(panel.figure.data[0].y) == {"lam", "policy"}


@pytest.mark.parametrize("values", [[0.3], [0.3] * 6, [0.31, 0.3, 0.3, 0.3]])
def test_importances_that_cannot_be_told_are_left_out(tmp_path: Path, values: list[float]) -> None:
    add_study(tmp_path, [trial("COMPLETE", value, [value]) for value in values])
    assert importances(search(tmp_path)) == []
    assert "Parameter importances" not in prose(page_of(tmp_path))


def test_trials_are_listed_as_in_the_trials_table(plain: Path) -> None:
    page = page_of(plain)
    section = page[page.index('id="trials"') : page.index('id="record"')]
    rows = re.findall(r"<tr[^>]*>.*?</tr>", section, re.DOTALL)
    headings = [prose(cell).strip() for cell in re.findall(r"<th .*?</th>", rows[0], re.DOTALL)]
    assert headings == ["trial", "state", "NDCG@20", "epochs", "seconds", "lam", "policy", "kl_threshold", "failure"]
    trials = [[prose(cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)] for row in rows[1:]]
    assert [row[:2] for row in trials][:3] == [["0", "COMPLETE"], ["1", "COMPLETE"], ["2", "PRUNED"]]
    assert trials[1] == ["1", "COMPLETE", "0.3100", "4", "60", "0.7000", "kl_divergence", "0.1000", "–"]
    assert trials[3][-1] == "&lt;script&gt;alert(&#39;x&#39;)&lt;/script&gt; no memory"
    assert '<tr class="marked">' in page
    assert f'title="{LAM}"' in page


def test_tables_are_sorted_and_scrolled_with_a_keyboard(plain: Path) -> None:
    page = page_of(plain)
    assert '<button type="button">lam</button>' in page
    assert page.count('<div class="scroll" tabindex="0">') == page.count("<table")


def test_every_figure_has_its_words(plain: Path) -> None:
    page = page_of(plain)
    words = re.findall(r'role="img" aria-label="([^"]*)"', page)
    assert len(words) == len(drawn(page)) == page.count("<figure")
    assert all(len(text) > 10 for text in words)


def test_two_keys_that_would_look_alike_keep_their_whole_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KINDS, "teacher.learning_rate", KINDS[RATE])
    params = {RATE: 1e-3, "teacher.learning_rate": 1e-2, LAM: 0.1}
    add_study(tmp_path, [trial("COMPLETE", 0.1, params=params), trial("COMPLETE", 0.2, params={**params, RATE: 1e-4})])
    assert [panel.heading for panel in slices(search(tmp_path))] == [RATE, "teacher.learning_rate", "lam"]


def test_several_objectives_have_a_pareto_front(tmp_path: Path) -> None:
    pairs = [(0.3, 1000.0), (0.2, 500.0), (0.25, 900.0), (0.1, 600.0)]
    trials = [trial("COMPLETE", pair, [pair[0]], params={LAM: place / 10}) for place, pair in enumerate(pairs)]
    options = {"metrics": ["ndcg_20", "parameters"], "directions": ["maximize", "minimize"]}
    add_study(tmp_path, trials, **options)
    (panel,) = pareto(search(tmp_path))
    others, front = panel.figure.data
    assert sorted(text.split(",")[0] for text in front.text) == ["trial 0", "trial 1", "trial 2"]
    assert [text.split("<br>")[1:] for text in others.text] == [["NDCG@20 0.1000", "parameters 600", "lam 0.3000"]]
    assert panel.words == "On the front are the trials 0, 1, 2"
    text = prose(page_of(tmp_path))
    assert "Trial 0 is the best of 4 trials by NDCG@20: NDCG@20 0.3000 on validation." in text
    assert "Pareto front" in text


FAIR = {
    "metric": "ndcg_20",
    "arms": [
        {
            "arm": "student", "title": "student alone", "trials": 5, "seeds": [0, 1], "test": 0.07, "low": 0.065,
            "high": 0.075, "validation": 0.08, "values_per_seed": [0.069, 0.071], "params": {RATE: 0.001}, "epochs": 9,
        },
        {
            "arm": "ranking", "title": "student + ranking", "trials": 5, "seeds": [0, 1], "test": 0.08, "low": 0.074,
            "high": 0.086, "validation": 0.09, "values_per_seed": [0.079, 0.081], "params": {LAM: 0.5}, "epochs": 9,
        },
        {"arm": "popularity", "test": 0.02},
    ],
    "comparisons": [
        {
            "name": "ranking", "against": "student", "difference": 0.01, "low": 0.004, "high": 0.016, "relative": 1 / 7,
            "p": 0.001, "p_corrected": 0.004, "verdict": "helped", "sentence": "Ranking helped: +14.3 %.",
        }
    ],
}  # fmt: skip


@pytest.fixture
def fair(tmp_path: Path) -> Path:
    """Two arms, their final trainings and the comparison."""
    for place, name in enumerate(("student", "ranking")):
        values = [0.05 + 0.01 * place + 0.001 * number for number in range(5)]
        key = LAM if place else RATE
        add_study(tmp_path, [trial("COMPLETE", v, [v / 2, v], params={key: v}) for v in values], name)
    finals = [(arm, seed) for arm in ("student", "ranking") for seed in (0, 1)]
    trained = [trial("COMPLETE", 0.07, [0.06, 0.07], params={"arm": arm, "seed": seed}) for arm, seed in finals]
    add_study(tmp_path, trained, "finals")
    (tmp_path / "fair.json").write_text(json.dumps(FAIR))
    return tmp_path


def test_a_fair_comparison_says_its_verdicts_first(fair: Path) -> None:
    text = prose(page_of(fair))
    first = text.index("Against student alone: student + ranking helped.")
    assert first < text.index("Against student alone: Ranking helped: +14.3 %.") < text.index("its seeds as strokes")
    assert "0.0650 to 0.0750" in text
    assert "+14.3 %" in text


def test_arms_are_drawn_with_intervals_and_seeds(fair: Path) -> None:
    (means, strokes), (differences, _) = drawn(page_of(fair))[:2]
    assert [text.split(":")[0] for text in means["text"]] == ["student alone", "student + ranking"]
    assert means["x"] == [0.07, 0.08]
    assert means["error_x"]["array"] == pytest.approx([0.005, 0.006])
    assert means["error_x"]["arrayminus"] == pytest.approx([0.005, 0.006])
    assert strokes["x"] == [0.069, 0.071, 0.079, 0.081]
    assert differences["x"] == [0.01]


def test_an_arm_far_off_is_written_at_the_edge() -> None:
    values, differences = arms(FAIR)
    assert [note.text for note in values.figure.layout.annotations] == ["◂ 0.0200"]
    assert list(values.figure.layout.yaxis.ticktext) == ["student alone", "student + ranking", "popularity"]
    assert values.figure.layout.xaxis.range[0] > 0.06
    assert differences.figure.layout.xaxis.range[0] < 0 < differences.figure.layout.xaxis.range[1]
    assert values.words.startswith("student alone 0.0700 (0.0650 to 0.0750); student + ranking 0.0800")


def test_arms_share_a_history_and_finals_are_no_search(fair: Path) -> None:
    page = page_of(fair)
    assert "finals: 4 trials" in prose(page)
    section = page[page.index('id="search"') : page.index('id="trials"')]
    assert re.findall(r"<summary>(.*?)</summary>", section) == [
        "student alone: its parameters", "student + ranking: its parameters"
    ]  # fmt: skip
    studies = read_studies(fair, MANIFEST, FAIR)[:2]
    assert [panel.heading for panel in learning_curves(studies)] == ["student alone", "student + ranking"]
    assert len({panel.figure.layout.yaxis.range for panel in learning_curves(studies)}) == 1
    lines = [trace for trace in history(studies, None).figure.data if trace.mode == "lines"]
    assert [line.name for line in lines] == ["student alone", "student + ranking"]


def test_arms_that_were_not_compared_yet_are_said_to_be_so(fair: Path) -> None:
    (fair / "fair.json").unlink()
    text = prose(page_of(fair))
    assert "The arms have been searched; they have not been compared yet." in text
    assert "ranking: Trial 4 is the best of 5 trials: NDCG@20 0.0640 on validation," in text


def test_nothing_says_only_that_it_is_empty(tmp_path: Path) -> None:
    page = page_of(tmp_path, {})
    assert "There is no study in this folder, so there is no answer." in prose(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == []
    add_study(tmp_path, [trial("FAIL", failure="no memory")])
    page = page_of(tmp_path, {})
    assert "No trial has completed, so there is no winner." in prose(page)
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Trials"]


def items(*titles: str) -> list[dict[str, str]]:
    return [{"raw_id": title.lower(), "title": title} for title in titles]


EXAMPLES = {
    "models": {"baseline": "baseline", "winner": "distilled", "teacher": "teacher", "closed form": "linear"},
    "listed": 2, "pool": 1500, "only_winner": 31, "only_baseline": 24, "seen_left_out": True, "no_teacher": "",
    "examples": [
        {
            "example_id": 7, "drawn": "from all", "earlier": 3, "history": items("Alien", "Brazil"),
            "target": items("Casablanca")[0],
            "lists": {
                "baseline": items("Dune", "Elf"), "winner": items("Fargo", "Casablanca"),
                "closed form": [*items("Casablanca"), {"raw_id": "99", "title": ""}],
            },
        }
    ],
}  # fmt: skip


def write_examples(folder: Path, **changes: Any) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    (folder / "metrics" / "examples.json").write_text(json.dumps({**EXAMPLES, **changes}))


def test_examples_stand_side_by_side_and_the_next_item_is_marked(plain: Path) -> None:
    write_examples(plain)
    page = page_of(plain)
    assert re.findall(r"<h2>(.*?)</h2>", page) == [ORDER[0], "Examples", *ORDER[1:]]
    section = page[page.index('<section id="examples">') : page.index('<section id="curves">')]
    text = prose(section)
    assert "from 1,500 validation examples: some from all of them, some from the 55 in which exactly one" in text
    assert "(distilled alone in 31, baseline alone in 24)" in text
    assert "What the user had met before is left out of the lists." in text
    assert "1 drawn from all 3 earlier items · Alien · Brazil next: Casablanca baseline" in text
    lists = re.findall(r"<h4>(.*?)</h4>\s*(<ol>.*?</ol>|<p.*?</p>)", section, re.DOTALL)
    told = [(prose(heading).strip(), prose(entries).strip()) for heading, entries in lists]
    assert told == [
        ("baseline", "Dune Elf"),
        ("distilled (winner)", "Fargo Casablanca next"),
        ("teacher", "has no list of this example"),
        ("linear", "Casablanca next item 99"),
    ]
    assert section.count('class="next"') == 2


def test_why_a_teacher_has_no_lists_is_said(plain: Path) -> None:
    models = {role: name for role, name in EXAMPLES["models"].items() if role != "teacher"}  # type: ignore[attr-defined]
    write_examples(plain, models=models, no_teacher="labels alone", seen_left_out=False)
    text = prose(page_of(plain))
    assert "No lists of the teacher: labels alone." in text
    assert "has no list of this example" not in text
    assert "is left out of the lists" not in text


def test_hostile_titles_are_inert(plain: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    (example,) = EXAMPLES["examples"]  # type: ignore[misc]
    hostile = {**example, "history": items(evil), "lists": {"winner": items(evil)}}  # type: ignore[dict-item]
    write_examples(plain, examples=[hostile], models={"baseline": evil, "winner": evil})
    page = page_of(plain)
    assert evil not in page
    assert "&lt;/script&gt;&lt;img src=x" in page


def test_a_model_that_is_missing_has_a_row_and_its_reason(plain: Path) -> None:
    table = (plain / "comparison.csv").read_text().splitlines()
    missing = [f"ease,{split},0,0,,,,too <b>many</b> items" for split in ("validation", "test")]
    lines = [f"{table[0]},missing", *(f"{line}," for line in table[1:]), *missing]
    (plain / "comparison.csv").write_text("\n".join(lines) + "\n")
    page = page_of(plain)
    section = page[page.index('<section id="comparison">') : page.index('<section id="curves">')]
    rows = [
        [prose(cell).strip() for cell in re.findall(r"<td.*?</td>", row, re.DOTALL)]
        for row in re.findall(r"<tr[^>]*>.*?</tr>", section, re.DOTALL)[1:]
    ]
    assert rows[-1] == ["ease", "test", "–", "–", "–", "–"]
    assert rows[0] == ["popularity", "validation", "10", "1", "0.1000", "0.0500"]
    assert section.count("ease is missing: too &lt;b&gt;many&lt;/b&gt; items") == 1
    assert ">missing<" not in section  # it is no column


def test_a_fair_comparison_says_which_models_are_missing(fair: Path) -> None:
    (fair / "fair.json").write_text(json.dumps({**FAIR, "missing": {"ease": "too many items"}}))
    page = page_of(fair)
    section = page[page.index('<section id="arms">') : page.index('<section id="curves">')]
    assert "ease is missing: too many items" in prose(section)
    assert re.search(r'<td class="short">ease</td>\s*<td class="number">–</td>', section)


SEGMENTS = """by,segment,examples,model,ndcg_20,gain,low,high,split
all,all,10,baseline,0.24,,,,test
all,all,10,distilled,0.27,0.03,0.01,0.05,test
"""


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("segments.csv", SEGMENTS.replace("ndcg_20", "other"), "lacks a column ndcg_K"),
        ("segments.csv", SEGMENTS.replace("0.24", "much"), "has text in the column ndcg_20"),
        ("segments.csv", SEGMENTS + SEGMENTS.splitlines()[-1] + "\n", "has a model's line of a segment twice"),
        ("segments.csv", SEGMENTS.replace("0.05", "much"), "has text in the column high"),
        ("comparison.csv", COMPARISON.replace("0.31", "much"), "has text in the column ndcg_20"),
        ("settings.yaml", "dataset: toys\n", "dataset: Input should be"),
    ],
)
def test_a_damaged_file_is_named(plain: Path, name: str, content: str, message: str) -> None:
    (plain / "segments.csv").write_text(SEGMENTS)
    assert "0.2700 (" in page_of(plain)
    (plain / name).write_text(content)
    with pytest.raises(ArtefactError, match=rf"{name}.*{message}"):
        page_of(plain)


def test_a_damaged_manifest_is_named(plain: Path) -> None:
    with pytest.raises(ArtefactError, match=r"manifest.json.*git: Input should be"):
        page_of(plain, {**MANIFEST, "git": "abc"})
    with pytest.raises(ArtefactError, match=r"manifest.json.*search: Input should be"):
        page_of(plain, {**MANIFEST, "search": 3})


def test_the_journal_is_left_as_it_was_even_with_an_unfinished_line(plain: Path) -> None:
    journal = plain / "study.journal"
    before = journal.read_bytes() + b'{"op_code": 7, "tri'
    journal.write_bytes(before)
    page_of(plain)
    with (plain / "test_openings.jsonl").open("a") as openings:
        openings.write('{"time": "2026-')
    assert "The test split was opened 1 time" in prose(page_of(plain))
    assert journal.read_bytes() == before
    with pytest.raises(PermissionError, match="only reads the journal"):
        search(plain).study.set_user_attr("written", True)
    assert journal.read_bytes() == before


WIDTHS = """[document.documentElement.scrollWidth, innerWidth,
             ...[...document.querySelectorAll('.main-svg')].map((one) => one.closest('figure').clientWidth)]"""


@pytest.mark.slow
@pytest.mark.skipif(FOUND is None, reason="there is no Chromium")
def test_a_browser_shows_the_page_on_a_desk_and_on_a_phone(plain: Path) -> None:
    write_examples(plain)
    page_of(plain)
    with Browser() as browser:
        for width, height, columns in ((1280, 900, 4), (390, 844, 2)):
            browser.go((plain / "report.html").as_uri())
            browser.until("document.readyState === 'complete' && !!document.querySelector('.main-svg')")
            browser.look(plain / "page.png", width, height)
            browser.until(f"innerWidth === {width}")
            whole, window, *figures = browser.run(WIDTHS)
            assert whole <= window == width  # nothing but tables is scrolled sideways
            assert min(figures) >= 240
            across = (
                "new Set([...document.querySelectorAll('.lists h4')].map((one) => one.getBoundingClientRect().x)).size"
            )
            assert browser.run(across) == columns
        # a heading is a button: a keyboard sorts
        browser.run("document.querySelector('#comparison th:nth-child(6) button').focus()")
        browser.run("document.activeElement.click()")
        column = "[...document.querySelectorAll('#comparison td:nth-child(6)')].map((one) => Number(one.dataset.value))"
        assert browser.run(column) == [0.04, 0.05, 0.24, 0.25, 0.27, 0.31]
        assert browser.run("document.querySelector('#comparison th:nth-child(6)').ariaSort") == "ascending"
        assert browser.errors == []
