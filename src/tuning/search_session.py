"""What the searches of a command run in: Ray, the trials' store, and the data that all trials read."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from src.core.errors import Paused
from src.core.memory import give_back
from src.core.result_files import TRIALS
from src.data.teacher_outputs import OutputsByTeachers
from src.pipeline.stages import Stages
from src.pipeline.student_stages import fit_of
from src.pipeline.tracking import tracker_for
from src.tuning.dispatch import MODEL, Dispatcher, Search
from src.tuning.executor import execute
from src.tuning.kept_models import whole_model
from src.tuning.population_groups import PopulationGroups, decide_population_size
from src.tuning.processes import end_survivors, graceful_signals
from src.tuning.progress import Baseline, SearchDisplay
from src.tuning.ray_session import check_shared, ray_session
from src.tuning.resources import Resources
from src.tuning.search_settings import SearchSettings
from src.tuning.search_space import SearchSpace, Stage, Value
from src.tuning.shared_data import FOLDER, SharedData
from src.tuning.store import ALIKE, Store, folder_bytes, own_store
from src.tuning.trainable import TOKEN, Trainable
from src.tuning.trial_curves import trial_curves
from src.tuning.worker_trials import ORDERS


@dataclass
class SearchSession:
    """A running Ray session with a search's data in place. The caller holds `single_driver` of ``folder``."""

    settings: SearchSettings
    folder: Path
    store: Store
    trainable: Trainable
    resources: Resources
    scratch: Path
    groups: PopulationGroups
    population_size: int = 1
    interrupted: str = ""
    #: the student alone, where trials are students, too
    baseline: Baseline | None = None
    _dispatcher: Dispatcher | None = field(default=None)

    def work_through(self, phases: Iterator[Sequence[Search]], first_name: str = "", then: str = "") -> None:
        """Run the searches' trials until each has its number, by the same workers from the first phase to the last.

        Args:
            phases: searches that are worked through together, and when they have ended the next ones.
            first_name: what the first trial is called on the screen in place of its parameters.
            then: what the screen says of what follows the first phase.

        Raises:
            Paused: something stopped it before the end.
        """
        searches = next(phases)
        screen = SearchDisplay(searches, first_name, self.baseline, then)
        with screen:
            self._dispatcher = Dispatcher(
                searches, self.store, self.settings.tuning.retries, screen.update, self._over_bound, self.interrupted,
                self.population_size, self.groups, phases, screen.follow,
            )  # fmt: skip
            if self.interrupted:  # while the phases that have ended were gone through
                self._dispatcher.halt(self.interrupted)
            elastic = bool(self.settings.ray.address)
            with trial_curves(tracker_for(self.settings.runtime.tracking, self.folder)) as curves:
                execute(self._dispatcher, self.trainable, self.resources, self.folder, self.scratch, elastic, curves)

    def interrupt(self, reason: str) -> None:
        """End in order (a signal's handler calls this)."""
        self.interrupted = reason
        if self._dispatcher is not None:
            self._dispatcher.halt(reason)

    def _over_bound(self) -> str:
        bound = self.settings.tuning.max_folder_mb
        used = folder_bytes(self.folder) / 2**20 if bound else 0.0
        if used <= bound:
            return ""
        return f"the result folder holds {used:.0f} MB of tuning.max_folder_mb={bound}; raise it to go on"

    def fetch(self, search: Search, number: int) -> Path | None:
        """A trial's model on this machine; None where it is gone, or is not what the trial left."""
        name = f"{search.folder(number)}/{MODEL}"
        return whole_model(self.store, name, self.scratch / "models" / name)


@contextmanager
def open_session(
    settings: SearchSettings,
    folder: Path,
    stages: Stages,
    outputs: OutputsByTeachers,
    space: SearchSpace,
    probe: Mapping[str, Value],
) -> Iterator[SearchSession]:
    """Ray, the trials' store and the shared data, for the block.

    Args:
        settings: how the search runs.
        folder: its result folder.
        stages: the experiment, with data and prior.
        outputs: what each set of teachers says.
        space: what trials report, and the keys that they set.
        probe: a point that is measured where trials share a GPU.
    """
    end_survivors(folder)
    with (
        own_store(folder, TRIALS, settings.storage) as store,
        _session(settings, folder, stages, outputs, space, probe, store) as session,
    ):
        yield session


@contextmanager
def _session(
    settings: SearchSettings, folder: Path, stages: Stages, outputs: OutputsByTeachers, space: SearchSpace,
    probe: Mapping[str, Value], store: Store,
) -> Iterator[SearchSession]:  # fmt: skip
    token = secrets.token_hex(16)
    store.write(TOKEN, token.encode())  # from here on a worker of an earlier start writes nothing more
    store.remove(ORDERS)  # of an earlier start, too
    store.sweep()
    # a student that neither is taught nor reads texts has no use for a language model: none is built or read
    source = stages.text_source if outputs or stages.reads_text else None
    SharedData.of(stages.data, outputs, stages.prior, stages.item_text, source, stages.other_priors).save(store)
    give_back(stages.device)
    tuning = settings.tuning
    try:
        with ray_session(settings.ray, settings.dashboard, stages.settings.runtime.device, folder) as scratch:
            if settings.ray.address:
                check_shared(store)
            trainable = Trainable(stages.settings, space, store, token, tuning.stall_minutes)
            groups = PopulationGroups(stages.settings, space.stage, stages.data.num_items)
            resources = Resources(tuning.cpu_per_trial, 0.0)
            session = SearchSession(settings, folder, store, trainable, resources, scratch, groups)
            session.baseline = _baseline(stages, space.stage)
            with graceful_signals(session.interrupt):
                session.resources, session.population_size = decide_population_size(
                    tuning, stages.settings, space, probe, store
                )
                yield session
                if session.interrupted:  # while the winner was being published
                    raise Paused(session.interrupted)
    finally:
        for name in (FOLDER, TOKEN, ORDERS, ALIKE):
            store.remove(name)
        store.sweep()


def _baseline(stages: Stages, stage: Stage) -> Baseline | None:
    """What the screen says of the student alone; None where trials are teachers, whose epochs are another thing."""
    if stage == "teacher":
        return None
    fit = fit_of(stages.baseline)
    return Baseline(fit.best_metrics, fit.epochs, fit.seconds)
