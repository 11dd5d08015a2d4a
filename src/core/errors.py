"""The project's one family of errors: each names the field, the value, the rule and the next step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

#: why a run was paused by a signal
INTERRUPTED, TERMINATED, HUNG_UP = "interrupted", "terminated", "the terminal was closed"


class AnyoError(Exception):
    """A problem that the user can act on; entry points show its text without a traceback."""


@dataclass(frozen=True)
class Problem:
    """One finding about the input: which field holds which value, the rule it breaks, and what to do next."""

    field: str
    value: object
    rule: str
    next_step: str = ""

    def __str__(self) -> str:
        step = f" → {self.next_step}" if self.next_step else ""
        return f"{self.field} = {self.value!r}: {self.rule}{step}"


class ProblemsFound(AnyoError):
    """One or more problems, reported together."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        if not problems:
            raise ValueError("ProblemsFound needs at least one problem")
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))

    @classmethod
    def one(cls, field: str, value: object, rule: str, next_step: str = "") -> ProblemsFound:
        """An error of this class that holds a single problem."""
        return cls([Problem(field, value, rule, next_step)])


class ConfigError(ProblemsFound):
    """The configuration breaks a rule: an unknown key, a wrong type, a value out of range."""


class DataError(ProblemsFound):
    """A data file is missing or malformed, or a dataset is too small or inconsistent."""


class ArtefactError(ProblemsFound):
    """A saved artefact does not belong to this run, is damaged, or was never finished."""


class DamagedArtefact(ArtefactError):
    """A saved artefact is not what was written: what made it can make it again."""


class ModelError(ProblemsFound):
    """A pretrained model is missing, unreadable, or of a kind that the stage cannot use."""


class TrainingFailed(AnyoError):
    """Training cannot go on: a loss or a metric is not finite, or the device is out of memory."""


class OutOfMemory(TrainingFailed):
    """The device has too little memory for this training, even with the smallest micro-batch that was allowed."""


class Paused(AnyoError):
    """A run was ended in order before it was through; what it has is on disk, and it can be resumed."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        #: as a shell tells it: 128 + the signal's number, 1 for other reasons
        self.exit_code = {HUNG_UP: 129, INTERRUPTED: 130, TERMINATED: 143}.get(reason, 1)


class StopTraining(Exception):
    """Raised by a report callback to end the loop after the reported epoch (a pruned trial)."""


def first_line(error: BaseException, most: int | None = None) -> str:
    """The first line of what an error says, or its kind where it says nothing.

    Args:
        error: of whatever library.
        most: characters that are kept.
    """
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:most]


def gather(*checks: Callable[[], object]) -> None:
    """Run every check and raise one ``ConfigError`` that holds the problems of all, each once, in their order."""
    problems: list[Problem] = []
    for check in checks:
        try:
            check()
        except ProblemsFound as error:
            for problem in error.problems:
                if problem not in problems:
                    problems.append(problem)
    if problems:
        raise ConfigError(problems)
