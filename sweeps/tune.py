"""Ray Tune runs the trials of a sweep."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from ray import tune

from kdbench.errors import RequestError
from kdbench.grid.cluster import Cluster, Need, address_of, ray_cluster, session
from kdbench.grid.prepare import marked, prepare_nodes
from kdbench.results.storage import Storage
from kdbench.results.store import TRIALS, read
from kdbench.sweeps._plan import SweepPlan
from kdbench.sweeps._space import Between, Space
from kdbench.sweeps._trial import Sweep, end_trial, run_trial

OBJECTIVE, EPOCH = "objective", "epoch"  # the names of the values in a report to Tune
REDUCTION = 3  # at each rung one trial in three goes on

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepEnd:
    """How many trials a finished sweep has."""

    num_trials: int  # all trials of Tune; a configuration that was drawn twice counts twice
    num_errors: int  # trials that raised in both attempts


def run_sweep(planned: SweepPlan, on_row: Callable[[Row], None]) -> SweepEnd:
    """Run all trials that have not finished, those of an earlier call too; `on_row` gets each new row.

    Raises RequestError if the cluster cannot run a trial or its nodes do not share the folders.
    """
    marker = _read_marker(planned)
    if marker is not None:
        return marker
    with _quiet_tune(), session(address_of(planned.request.address)) as cluster:
        check_cluster(planned, cluster)
        rows = _Rows(planned.sweep, on_row)
        with rows.told():
            results = _tuner(planned).fit()
        for result in (results[i] for i in range(len(results))):
            searched = _decoded(planned.space, result.config or {})
            end_trial(planned.sweep, searched, str(result.error) if result.error else None)
            rows.look(searched)
    end = SweepEnd(num_trials=len(results), num_errors=results.num_errors)
    if not end.num_errors and end.num_trials >= planned.request.trials:
        Storage(planned.sweep.place.results).write(_marker_name(planned), json.dumps(vars(end)).encode())
    return end


def read_sweep(sweep: Sweep) -> list[Row]:
    """The rows of the trials of a sweep, in the order in which they began."""
    rows = read(sweep.place.results, TRIALS).to_pylist()
    own = [row for row in rows if row["sweep_id"] == sweep.id]
    return sorted(own, key=lambda row: (row["started_at"], not row["is_default"], row["trial_id"]))


def _marker_name(planned: SweepPlan) -> str:
    return f"{planned.folder}/ended.json"


def _read_marker(planned: SweepPlan) -> SweepEnd | None:
    """The end of an earlier call, if all its rows are still there and ok."""
    storage = Storage(planned.sweep.place.results)
    if not storage.exists(_marker_name(planned)):
        return None
    rows = read_sweep(planned.sweep)
    if not rows or any(row["status"] != "ok" for row in rows):
        return None
    return SweepEnd(**json.loads(storage.read(_marker_name(planned))))


def _trial(config: dict[str, Any], sweep: Sweep, space: Space) -> None:
    """The function that Tune runs in a process of its own."""
    run_trial(
        sweep,
        _decoded(space, config),
        lambda epoch, value: tune.report({OBJECTIVE: value, EPOCH: epoch}),
    )


def _tuner(planned: SweepPlan) -> tune.Tuner:
    """A new experiment of Tune, or the one that an earlier call of this sweep left."""
    sweep, request = planned.sweep, planned.request
    trainable = tune.with_resources(
        tune.with_parameters(_trial, sweep=sweep, space=planned.space),
        {"cpu": request.cpus_per_trial, "gpu": planned.gpus_per_trial},
    )
    files = Storage(sweep.place.results)
    storage = files.path(planned.folder)
    # A sweep that was killed in its first seconds has no state of its trials: Ray cannot go on from it.
    begun = any("experiment_state" in name for name in files.names(f"{planned.folder}/ray"))
    if begun and tune.Tuner.can_restore(f"{storage}/ray"):
        # The state is a pickle of Ray: it is as safe as the folder in which it lies.
        return tune.Tuner.restore(
            f"{storage}/ray", trainable=trainable, resume_unfinished=True, restart_errored=True
        )
    return tune.Tuner(
        trainable,
        param_space={key: _domain(domain) for key, domain in planned.space.items()},
        tune_config=tune.TuneConfig(
            metric=OBJECTIVE,
            mode="max",
            num_samples=request.trials,
            search_alg=_searcher(planned),
            scheduler=_scheduler(planned),
            # A searcher that proposes all trials at once learns from none of them.
            max_concurrent_trials=_concurrent(planned),
        ),
        run_config=tune.RunConfig(
            name="ray",
            storage_path=storage,
            failure_config=tune.FailureConfig(max_failures=1),
            callbacks=[_EndTrials(sweep, planned.space)],
            verbose=0,
        ),
    )


class _Rows:
    """Hands the row of a trial to `on_row` when it has changed."""

    def __init__(self, sweep: Sweep, on_row: Callable[[Row], None]) -> None:
        self.sweep, self.on_row = sweep, on_row
        self.seen = {row["trial_id"]: _state(row) for row in read_sweep(sweep)}

    def look(self, searched: dict[str, Any]) -> None:
        """Read the row of this configuration, which its own process writes before each report."""
        row = self.sweep.written(searched)
        if row is not None and self.seen.get(row["trial_id"]) != _state(row):
            self.seen[row["trial_id"]] = _state(row)
            self.on_row(row)

    @contextmanager
    def told(self) -> Iterator[None]:
        """Let Tune's callback find this object while the block runs."""
        before = _ROWS.set(self)
        try:
            yield
        finally:
            _ROWS.reset(before)


def _state(row: Row) -> tuple[str, int]:
    return row["status"], row["epochs_trained"]


# Tune pickles its callbacks to go on from them later: they cannot hold an object that prints rows.
_ROWS: ContextVar[_Rows] = ContextVar("_ROWS")


class _EndTrials(tune.Callback):
    """Follows the trials in the process that Tune runs in. Its name is in the state of sweeps that go on."""

    def __init__(self, sweep: Sweep, space: Space) -> None:
        self.sweep, self.space = sweep, space

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """A trial reported; its row may say that it has succeeded."""
        _ROWS.get().look(_decoded(self.space, trial.config))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial raised; its row says so, and Tune tries it again."""
        _ROWS.get().look(_decoded(self.space, trial.config))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Complete the row of a trial that was stopped early: its own process does not live to do so."""
        searched = _decoded(self.space, trial.config)
        end_trial(self.sweep, searched, None)
        _ROWS.get().look(searched)


def _domain(domain: Any) -> Any:
    if not isinstance(domain, Between):
        return tune.choice([domain.encoded(value) for value in domain.values])
    if domain.whole:  # Tune leaves out the upper end
        draw = tune.lograndint if domain.log else tune.randint
        return draw(int(domain.low), int(domain.high) + 1)
    return (tune.loguniform if domain.log else tune.uniform)(domain.low, domain.high)


def _decoded(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    return {key: domain.decoded(config[key]) for key, domain in space.items()}


def _searcher(planned: SweepPlan) -> Any:
    """The searcher, which proposes configurations; the first is the default."""
    seed = planned.sweep.cells[0].seed
    first = [{key: planned.space[key].encoded(value) for key, value in planned.first.items()}]
    if planned.request.search == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        return OptunaSearch(points_to_evaluate=first, seed=seed)
    return tune.search.BasicVariantGenerator(
        points_to_evaluate=first, random_state=seed, max_concurrent=_concurrent(planned)
    )


def _scheduler(planned: SweepPlan) -> Any:
    """The scheduler, which stops trials early by their reports; None if none does."""
    sweep = planned.sweep
    if sweep.scheduler == "asha":
        grace = max(1, min(sweep.epochs, max(sweep.report_every, sweep.epochs // REDUCTION**2)))
        return tune.schedulers.ASHAScheduler(
            time_attr=EPOCH, max_t=sweep.epochs, grace_period=grace, reduction_factor=REDUCTION
        )
    return None


def _concurrent(planned: SweepPlan) -> int:
    """How many trials run at a time: as many as asked for, at most as many as the cluster holds."""
    fitting = ray_cluster().fits(_need(planned))
    return min(planned.request.max_concurrent or fitting, fitting)


def _need(planned: SweepPlan) -> Need:
    """The need of a trial."""
    return Need(cpus=planned.request.cpus_per_trial, gpus=planned.gpus_per_trial)


def check_cluster(planned: SweepPlan, cluster: Cluster) -> None:
    """RequestError if no trial fits into the cluster, or if a node does not see the folders and weights."""
    need = _need(planned)
    if not cluster.fits(need):
        raise RequestError([f"no node has {need} for a trial: it would wait for ever", str(cluster)])
    with marked(Storage(planned.sweep.place.results)) as marker:
        prepare_nodes(planned.cells.jobs, planned.cells.data, marker)


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """A context in which Tune has no tables, log files and signal handlers."""
    quiet = {
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV, JSON and TensorBoard files of every trial
        "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is ours: exit code 130
        "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a relative cache folder must stay what it is
        "RAY_AIR_NEW_OUTPUT": "0",
    }
    before = {name: os.environ.get(name) for name in quiet}
    os.environ.update(quiet)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
