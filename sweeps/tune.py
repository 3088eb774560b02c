"""Ray Tune runs the trials of a sweep."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ray import tune

from kdbench.errors import RequestError
from kdbench.grid.cluster import Cluster, Need, address_of, ray_cluster, session
from kdbench.grid.prepare import prepare_nodes
from kdbench.results.storage import Storage
from kdbench.results.store import TRIALS, read
from kdbench.sweeps._plan import SweepPlan
from kdbench.sweeps._space import Between, Space
from kdbench.sweeps._trial import Sweep, end_trial, run_trial

OBJECTIVE, EPOCH = "objective", "epoch"  # the names that Tune knows a report by
REDUCTION = 3  # of the trials at each rung one in three goes on
LOOK_EVERY_S = 1.0

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class SweepEnd:
    """How a sweep ended."""

    num_trials: int  # that Tune ran, configurations drawn twice included
    num_errors: int  # of those, trials that raised again when they were tried again


def run_sweep(planned: SweepPlan, on_row: Callable[[Row], None]) -> SweepEnd:
    """Run all trials that have not ended, or go on with an earlier call; `on_row` sees each new row.

    RequestError if the cluster cannot run a trial or its nodes do not share the folders.
    """
    marker = _read_marker(planned)
    if marker is not None:
        return marker
    with _quiet_tune(), session(address_of(planned.request.address)) as cluster:
        check_cluster(planned, cluster)
        with watch(planned.sweep, on_row):
            results = _tuner(planned).fit()
        for result in (results[i] for i in range(len(results))):
            error = str(result.error) if result.error else None
            end_trial(planned.sweep, _decoded(planned.space, result.config or {}), error)
    end = SweepEnd(num_trials=len(results), num_errors=results.num_errors)
    if not end.num_errors and end.num_trials >= planned.request.trials:
        Storage(planned.sweep.place.results).write(_marker_name(planned), json.dumps(vars(end)).encode())
    return end


def read_sweep(sweep: Sweep) -> list[Row]:
    """The rows of a sweep's trials in the order in which they began."""
    rows = read(sweep.place.results, TRIALS).to_pylist()
    own = [row for row in rows if row["sweep_id"] == sweep.id]
    return sorted(own, key=lambda row: (row["started_at"], not row["is_default"], row["trial_id"]))


def _marker_name(planned: SweepPlan) -> str:
    return f"{planned.folder}/ended.json"


def _read_marker(planned: SweepPlan) -> SweepEnd | None:
    """How the sweep ended in an earlier call, if it did and all its rows are still there."""
    storage = Storage(planned.sweep.place.results)
    if not storage.exists(_marker_name(planned)):
        return None
    rows = read_sweep(planned.sweep)
    if not rows or any(row["status"] != "ok" for row in rows):
        return None
    return SweepEnd(**json.loads(storage.read(_marker_name(planned))))


def _trial(config: dict[str, Any], sweep: Sweep, space: Space) -> None:
    """What Tune runs in a process of its own."""
    run_trial(
        sweep,
        _decoded(space, config),
        lambda epoch, value: tune.report({OBJECTIVE: value, EPOCH: epoch}),
    )


def _tuner(planned: SweepPlan) -> tune.Tuner:
    """A new experiment, or the one that an earlier call of the same sweep left."""
    sweep, request = planned.sweep, planned.request
    trainable = tune.with_resources(
        tune.with_parameters(_trial, sweep=sweep, space=planned.space),
        {"cpu": request.cpus_per_trial, "gpu": planned.gpus_per_trial},
    )
    files = Storage(sweep.place.results)
    storage = files.path(planned.folder)
    # A sweep that was killed in its first seconds has no state of its trials: Ray would not go on from it.
    begun = any("experiment_state" in name for name in files.names(f"{planned.folder}/ray"))
    if begun and tune.Tuner.can_restore(f"{storage}/ray"):
        # The state is Ray's own pickle, which is as safe as the folder that it lies in.
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
            # A searcher that is asked for everything at once has learnt nothing by then.
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


class _EndTrials(tune.Callback):
    """Completes the rows of trials that were stopped early, which their own processes do not live to do."""

    def __init__(self, sweep: Sweep, space: Space) -> None:
        self.sweep, self.space = sweep, space

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        end_trial(self.sweep, _decoded(self.space, trial.config), None)


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
    """What draws configurations; the first is the default."""
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
    """What stops trials by what they reported so far."""
    sweep = planned.sweep
    if sweep.scheduler == "asha":
        grace = max(1, min(sweep.epochs, max(sweep.report_every, sweep.epochs // REDUCTION**2)))
        return tune.schedulers.ASHAScheduler(
            time_attr=EPOCH, max_t=sweep.epochs, grace_period=grace, reduction_factor=REDUCTION
        )
    return None


def _concurrent(planned: SweepPlan) -> int:
    """Trials at a time: what was asked for, at most what the cluster holds."""
    fitting = ray_cluster().fits(_need(planned))
    return min(planned.request.max_concurrent or fitting, fitting)


def _need(planned: SweepPlan) -> Need:
    """What a trial occupies."""
    return Need(cpus=planned.request.cpus_per_trial, gpus=planned.gpus_per_trial)


def check_cluster(planned: SweepPlan, cluster: Cluster) -> None:
    """RequestError if no trial fits into the cluster, or if a node does not see what a trial needs."""
    need = _need(planned)
    if not cluster.fits(need):
        raise RequestError([f"a trial takes {need}, no node has that: it would wait for ever", str(cluster)])
    prepare_nodes(planned.cells.jobs, planned.cells.data)


@contextmanager
def watch(sweep: Sweep, on_row: Callable[[Row], None]) -> Iterator[None]:
    """Hand every row of the sweep to `on_row` when it changes, from a thread, while the block runs."""
    storage, ended = Storage(sweep.place.results), threading.Event()
    seen = dict[str, tuple[str, int]]()
    for row in read_sweep(sweep):
        seen[row["trial_id"]] = (row["status"], row["epochs_trained"])

    def look() -> None:
        trials = [TRIALS.owner(name) for name in TRIALS.names(storage)]
        own = [trial_id for trial_id in trials if trial_id.startswith(f"{sweep.id}-")]
        for row in read(storage, TRIALS, only=own).to_pylist():
            state = (row["status"], row["epochs_trained"])
            if seen.get(row["trial_id"]) != state:
                seen[row["trial_id"]] = state
                on_row(row)

    def keep_looking() -> None:
        while not ended.wait(LOOK_EVERY_S):
            look()

    watcher = threading.Thread(target=keep_looking, name="sweep", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        look()


@contextmanager
def _quiet_tune() -> Iterator[None]:
    """Tune without its tables, log files and handlers of signals."""
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
