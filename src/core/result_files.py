"""What the files and folders of a result folder are called: who writes one and who reads it meet here.

`docs/reference/result_folder.md` says what each of them holds. The manifest, which every artefact has, is
`src.core.paths.MANIFEST`.
"""

from __future__ import annotations

from pathlib import Path

# ------------------------------------------------------------------------------------------------ what was asked for

#: what a search was started with; it is there from the beginning
COMMAND_FILE = "command.json"

#: the frozen settings of the run
SETTINGS_FILE = "settings.yaml"

#: the search space as it was when the search was started
SPACE_FILE = "search_space.yaml"

#: when a search went on, and with what changes
RESUMES = "resumes.jsonl"

#: the keys from which a command repeats the winner
BEST_PARAMS = "best_params.yaml"

# --------------------------------------------------------------------------------------------------- while it runs

RUN_LOG = "run.log"

#: who works in a result folder at the moment
DRIVER_LOCK = "driver.lock"

#: the search's record: Optuna's journal
JOURNAL = "study.journal"

#: where trials keep their files, unless `storage` names another place
TRIALS = "trials"

#: each opening of the test split
TEST_OPENINGS = "test_openings.jsonl"

#: TensorBoard's files
CURVES = "tb"

#: the manifest of a search before trials were added
EARLIER_MANIFEST = "manifest_before.json"

# ------------------------------------------------------------------------------------------------------ what it found

#: the published student, the published teacher, and what the teacher says about training examples
BEST_STUDENT, TEACHER, TEACHER_OUTPUTS = "best_student", "teacher", "teacher_outputs"

#: every model on every split; the target's rank for every example and model; gains by segment
COMPARISON, RANKS, SEGMENTS = "comparison.csv", "ranks.csv", "segments.csv"

#: the lists over which a teacher's answers were judged, by split
CANDIDATES = "candidates"

#: a line a trial; the answer of the fair protocol; the page that tells everything
TRIALS_TABLE, FAIR, REPORT = "trials.csv", "fair.json", "report.html"

#: what optuna-dashboard is given as its --artifact-dir
DASHBOARD_FILES = "dashboard_files"

#: names under `metrics/` beside those of the models
TIME, VERDICT, EXAMPLES, TEACHER_CHECK = "time", "verdict", "examples", "teacher_check"


def metrics_file(folder: Path, name: str) -> Path:
    """`metrics/<name>.json` of a result folder."""
    return folder / "metrics" / f"{name}.json"
