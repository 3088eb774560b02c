"""One function that executes cells, in this process or by Ray; only sweeps/tune.py knows Ray beside it."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kdbench.request import Job
from kdbench.run import Notify, Outcome, execute_cell

Started = Callable[[Job], None]


def execute(
    jobs: Sequence[Job], *, executor: str, run_id: str, notify: Notify, timeout_s: float | None = None
) -> Iterator[Outcome]:
    """Run every job, yield each outcome as it ends; its rows are on disk by then. OSError if not."""
    if executor == "ray":
        yield from _with_ray(jobs, run_id, timeout_s)
    else:
        for job in jobs:
            yield execute_cell(job.cell, job.place, run_id, notify, timeout_s)


def _with_ray(jobs: Sequence[Job], run_id: str, timeout_s: float | None) -> Iterator[Outcome]:
    import ray

    # max_calls=1: a fresh process for each cell, so that no GPU memory leaks from one to the next; it must
    # be given here, in the decorator. One retry is for a lost worker: exceptions end as rows in the task.
    @ray.remote(max_calls=1, max_retries=1)
    def run_one(job: Job) -> Outcome:
        return execute_cell(job.cell, job.place, run_id, lambda progress: None, timeout_s)

    ray.init(ignore_reinit_error=True, log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        resources = _resources(jobs, ray.cluster_resources())
        waiting, running = list(jobs), dict[Any, Job]()
        # More tasks in flight than the cluster can hold would only lie in its queue.
        window = max(1, int(ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            while waiting and len(running) < window:
                job = waiting.pop(0)
                running[run_one.options(**resources).remote(job)] = job
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ready)
            yield ray.get(ready)
    finally:
        ray.shutdown()


def _resources(jobs: Sequence[Job], cluster: dict[str, Any]) -> dict[str, float]:
    on_gpu = any(job.place.device.startswith("cuda") for job in jobs)
    if on_gpu and cluster.get("GPU", 0) < 1:
        raise ValueError(f"cells on a GPU were asked for, the Ray cluster has {cluster}")
    cpus = max(job.place.num_threads or 1 for job in jobs)
    if cluster.get("CPU", 0) < cpus:
        raise ValueError(f"cells on {cpus} CPUs were asked for, the Ray cluster has {cluster}")
    return {"num_cpus": cpus, "num_gpus": 1 if on_gpu else 0}
