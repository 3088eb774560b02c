"""Scheduling: what Ray runs, loses, kills and retries; one Ray for all tests here, of two CPUs."""

import errno
import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import ray_work
import torch
from conftest import SMALL, STFPM, TINY

from kdbench.cell import ELSEWHERE, outcome_of
from kdbench.errors import RequestError, ResultsError
from kdbench.grid import cluster, schedule, timing, with_ray
from kdbench.grid.attempt import execute_cell
from kdbench.grid.cluster import RETRIES, Cluster, Need, Node, session
from kdbench.grid.execution import Execution
from kdbench.grid.lease import Holder, acquire, holders
from kdbench.grid.plan import plan
from kdbench.grid.request import Request
from kdbench.grid.status import RunFile, part_done, seconds_left, states, write_run
from kdbench.grid.with_ray import Attempt, settle
from kdbench.results.storage import Storage
from kdbench.results.store import CELLS, Results, read

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    # Workers import what they run from beside this file.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, [before])])
    with session(None, Cluster(nodes=(Node(name="a", cpus=2, gpus=0, memory_bytes=2**30),))):
        yield
    os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)


def planned(root, results, **changes):
    asked = {
        "methods": ("stfpm",),
        "dataset": ("mvtec_ad",),
        "root": root,
        "backbone": "tiny",
        "epochs": 1,
        "set": {"all.image_size": 32, "all.batch_size": 4},
        "results": results,
        "cpus_per_cell": 1,
    }
    return plan(Request(**(asked | changes)))


def execute(found, work, *, executor="ray", timeout_s=None, run_id="run-1", seen=None):
    seen = [] if seen is None else seen
    asked = Execution(
        jobs=found.jobs,
        data=found.data,
        executor=executor,
        run_id=run_id,
        watch=seen.append,
        timeout_s=timeout_s,
        work=work,
    )
    return list(schedule.execute(asked))


@slow
def test_lost_workers_are_tried_twice_more(ray_here, mvtec, tmp_path):
    found = planned(mvtec, tmp_path / "r")
    outcomes = execute(found, ray_work.dies_twice)
    assert sorted(o.cell_id for o in outcomes) == sorted(j.cell.id for j in found.jobs)
    assert {o.status for o in outcomes} == {"ok"}


@slow
def test_a_worker_that_is_always_lost_is_a_failed_row(ray_here, mvtec, tmp_path):
    (outcome,) = execute(planned(mvtec, tmp_path / "r", categories=("bottle",)), ray_work.dies_always)
    assert outcome.status == "failed"
    assert outcome.error.startswith("lost 3 workers or nodes: ")
    assert len(list((tmp_path / "r/attempts").iterdir())) == 3
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert (row["status"], row["error"], row["category"]) == ("failed", outcome.error, "bottle")
    assert holders(Storage(tmp_path / "r")) == []


@slow
def test_a_broken_gpu_is_no_failure_of_the_cell(ray_here, mvtec, tmp_path):
    found = planned(mvtec, tmp_path / "r", categories=("bottle",))
    (outcome,) = execute(found, ray_work.on_a_broken_gpu_twice)
    assert outcome.status == "ok"
    (outcome,) = execute(planned(mvtec, tmp_path / "s", categories=("bottle",)), ray_work.on_a_broken_gpu)
    assert outcome.status == "failed"
    assert outcome.error.endswith("the GPU of a does not compute: uncorrectable ECC error")


@slow
def test_a_node_that_sees_another_folder_runs_nothing(ray_here, mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr(Storage, "write", lambda self, name, data: None)  # as to a disk of its own
    found = planned(mvtec, tmp_path / "r", categories=("bottle",))
    (outcome,) = execute(found, ray_work.sees_gpus)
    assert outcome.status == "failed"
    assert "does not see the results folder" in outcome.error


@slow
def test_a_worker_lost_after_it_wrote_its_rows_is_not_run_again(ray_here, mvtec, tmp_path):
    (outcome,) = execute(planned(mvtec, tmp_path / "r", categories=("bottle",)), ray_work.dies_after_its_rows)
    assert outcome.status == "ok"
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert row["status"] == "ok"


@slow
def test_an_end_that_ray_does_not_report_is_read_from_the_files(ray_here, mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr(with_ray, "SILENT_S", 0.5)
    found = planned(mvtec, tmp_path / "r", categories=("bottle",))
    (outcome,) = execute(found, ray_work.never_answers)
    assert outcome.status == "ok"
    assert len(read(tmp_path / "r", CELLS)) == 1


@slow
def test_an_exception_is_never_tried_again(ray_here, mvtec, tmp_path):
    (outcome,) = execute(planned(mvtec, tmp_path / "r", categories=("bottle",)), ray_work.raises)
    assert outcome.status == "failed"
    assert "what a bug of ours would raise" in outcome.error
    assert len(list((tmp_path / "r/attempts").iterdir())) == 1


@slow
def test_results_that_cannot_be_written_end_the_run(ray_here, mvtec, tmp_path):
    with pytest.raises(ResultsError, match="No space left"):
        execute(planned(mvtec, tmp_path / "r"), ray_work.cannot_write)


@slow
def test_a_cell_that_does_not_stop_is_killed_and_the_others_run(ray_here, mvtec, tmp_path, monkeypatch):
    monkeypatch.setattr(with_ray, "GRACE_S", 0.5)
    (outcome,) = execute(
        planned(mvtec, tmp_path / "r", categories=("bottle",)), ray_work.hangs, timeout_s=0.5
    )
    assert outcome.status == "timeout"
    assert outcome.error.startswith("killed 0.5 s after its 0.5 s (--timeout)")
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert row["status"] == "timeout"
    assert holders(Storage(tmp_path / "r")) == []


@slow
def test_a_cpu_cell_sees_no_gpu(ray_here, mvtec, tmp_path, monkeypatch):
    (outcome,) = execute(planned(mvtec, tmp_path / "r", categories=("bottle",)), ray_work.sees_gpus)
    assert outcome.summary == ""


@slow
@pytest.mark.parametrize("executor", ["ray", "local"])
def test_what_another_run_has_is_waited_for(ray_here, mvtec, tmp_path, executor):
    found = planned(mvtec, tmp_path / "r", categories=("bottle",))
    seen = []
    (outcome,) = execute(found, ray_work.frees_itself, executor=executor, seen=seen)
    assert outcome.status == "ok"


@slow
def test_what_no_node_has_is_refused_before_anything_starts(ray_here, mvtec, tmp_path):
    found = planned(mvtec, tmp_path / "r")
    found.jobs = [replace(job, need=Need(cpus=3)) for job in found.jobs]
    with pytest.raises(RequestError) as raised:
        execute(found, ray_work.raises)
    assert raised.value.complaints[0] == "no node has 3 CPUs, 0 GPUs for a cell"
    assert raised.value.complaints[1].startswith("the cluster has ")
    assert not (tmp_path / "r/attempts").exists()


@slow
def test_memory_that_others_use_now_refuses_nothing(ray_here, mvtec, tmp_path):
    """Ray offers what is free when it starts, and not what the machine has."""
    found = planned(mvtec, tmp_path / "r")
    found.jobs = [replace(job, need=Need(memory_bytes=1 << 50)) for job in found.jobs]
    assert [outcome.status for outcome in execute(found, ray_work.raises)] == ["failed", "failed"]


def lost_for_the_last_time(found, run_id="ours"):
    """What a run makes of its only cell when the last worker that it may lose was lost."""
    execution = Execution(jobs=found.jobs, data=found.data, run_id=run_id)
    return settle(execution, None, Attempt(job=found.jobs[0], number=1 + RETRIES))


def test_what_another_run_ended_is_not_lost_with_our_workers(mvtec, tmp_path):
    found = planned(mvtec, tmp_path / "r", categories=("bottle",))
    (job,) = found.jobs
    execute_cell(job.cell, job.place, "theirs", lambda progress: None)
    assert lost_for_the_last_time(found).status == "ok"
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert (row["run_id"], row["status"]) == ("theirs", "ok")
    assert len(Storage(tmp_path / "r").names("detectors")) == 1
    found.jobs = [replace(job, place=replace(job.place, replaces="theirs"))]  # --redo all
    assert lost_for_the_last_time(found).status == "failed"
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert (row["run_id"], row["status"]) == ("ours", "failed")
    assert Storage(tmp_path / "r").names("leases") == []


def test_what_another_run_is_running_is_not_lost_with_our_workers(mvtec, tmp_path):
    found = planned(mvtec, tmp_path / "r", categories=("bottle",))
    acquire(Storage(tmp_path / "r"), Holder(cell_id=found.jobs[0].cell.id, run_id="theirs"))
    assert lost_for_the_last_time(found).status == ELSEWHERE
    assert Storage(tmp_path / "r").names("cells") == []


def test_clearing_away_hides_no_error(mvtec, tmp_path, monkeypatch):
    scan = os.scandir

    def broken(path):
        if Path(path).name == "leases":
            raise OSError(errno.EIO, "Input/output error")
        return scan(path)

    def work(cell, place, run_id, notify, timeout_s):
        acquire(Storage(place.results), Holder(cell_id="another", run_id="theirs"))
        monkeypatch.setattr(os, "scandir", broken)
        raise ResultsError("No space left on device")

    with pytest.raises(ResultsError, match="No space left"):
        execute(planned(mvtec, tmp_path / "r"), work, executor="local")


def test_what_others_are_writing_is_not_cleared_away(mvtec, tmp_path):
    found, storage = planned(mvtec, tmp_path / "r"), Storage(tmp_path / "r")
    first, second = (job.cell.id for job in found.jobs)
    acquire(storage, Holder(cell_id=second, run_id="theirs"))
    writing = [f"curves/.{second}.parquet.1.tmp", "detectors/.a-trial.safetensors.1.tmp"]
    for name in (f"curves/.{first}.parquet.1.tmp", *writing):
        storage.write(name, b"half")
    execute(found, lambda cell, *rest: outcome_of(cell, "ok", 0.0), executor="local")
    assert storage.unfinished("curves") + storage.unfinished("detectors") == writing


def test_a_cell_of_another_run_is_left_to_it(mvtec, tmp_path):
    (job,) = planned(mvtec, tmp_path / "r", categories=("bottle",)).jobs
    theirs = acquire(Storage(tmp_path / "r"), Holder(cell_id=job.cell.id, run_id="theirs"))
    assert execute_cell(job.cell, job.place, "ours", lambda progress: None).status == ELSEWHERE
    assert not (tmp_path / "r/cells").exists()
    theirs.release()
    assert execute_cell(job.cell, job.place, "ours", lambda progress: None).status == "ok"
    again = execute_cell(job.cell, job.place, "third", lambda progress: None)
    assert (again.status, again.seconds) == ("ok", 0.0)  # it ended meanwhile: not run again
    assert read(tmp_path / "r", CELLS)["run_id"].to_pylist() == ["ours"]


def test_whoever_lost_its_lease_writes_nothing(mvtec, tmp_path):
    (job,) = planned(mvtec, tmp_path / "r", categories=("bottle",)).jobs
    storage = Storage(tmp_path / "r")

    def overtaken(progress):
        if progress.phase == "evaluate":
            for name in storage.names("leases"):
                storage.remove(name)

    assert execute_cell(job.cell, job.place, "ours", overtaken).status == ELSEWHERE
    assert storage.names("cells") == storage.names("scores") == storage.names("detectors") == []


def test_what_runs_alone_has_the_whole_gpu(mvtec, tmp_path):
    found, seen = planned(mvtec, tmp_path / "r"), []
    found.jobs = [replace(job, place=replace(job.place, gpu_share=0.1)) for job in found.jobs]

    def work(cell, place, run_id, notify, timeout_s):
        seen.append(place.gpu_share)
        return outcome_of(cell, "ok", 0.0)

    execute(found, work, executor="local")
    assert seen == [1.0, 1.0]


@pytest.mark.parametrize(
    ("asked", "count", "cpus", "chosen"),
    [
        (None, 2, 2, "ray"),
        (None, 1, 64, "local"),
        (None, 8, 1, "local"),
        ("local", 8, 64, "local"),
        ("ray", 1, 1, "ray"),
    ],
)
def test_ray_is_used_when_cells_can_run_side_by_side(mvtec, tmp_path, asked, count, cpus, chosen):
    jobs = planned(mvtec, tmp_path / "r", seeds=tuple(range(count)), categories=("bottle",)).jobs
    cluster = Cluster(nodes=(Node(name="a", cpus=cpus, gpus=0, memory_bytes=2**30),))
    assert schedule.choose_executor(asked, jobs, cluster) == chosen


def test_a_numbered_gpu_is_for_this_process_alone(mvtec, tmp_path, monkeypatch):
    """A worker of Ray sees one GPU, whose number is 0."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    two = Cluster(nodes=(Node(name="a", cpus=8, gpus=2, memory_bytes=2**30),))
    jobs = planned(mvtec, tmp_path / "r", device="cuda:1").jobs
    assert {job.place.device for job in jobs} == {"cuda:1"}
    assert schedule.choose_executor(None, jobs, two) == "local"
    assert schedule.choose_executor(None, planned(mvtec, tmp_path / "r", device="cuda").jobs, two) == "ray"
    with pytest.raises(RequestError) as raised:
        planned(mvtec, tmp_path / "r", device="cuda:1", executor="ray")
    (complaint,) = raised.value.complaints
    assert complaint == "device 'cuda:1': Ray chooses the GPU. Devices: auto, cpu, cuda; or --executor local"


def test_the_time_left_weighs_cells_by_what_they_take():
    cells = {"a": 1.0, "b": 3.0, "c": 6.0}
    assert seconds_left(cells, {"a", "b"}, {}, elapsed_s=20) == pytest.approx(30)
    assert seconds_left(cells, {"a", "b", "c"}, {}, elapsed_s=20) == 0
    assert seconds_left(cells, set(), {}, elapsed_s=20) is None


def test_the_time_left_falls_while_a_cell_is_trained():
    cells = {"a": 1.0, "b": 3.0, "c": 6.0}
    half = part_done("train", 50, 100)
    assert seconds_left(cells, {"a"}, {"b": half}, elapsed_s=20) == pytest.approx(20 * 7.5 / 2.5)
    # A little later another quarter of it is done, and less time is left.
    assert seconds_left(cells, {"a"}, {"b": 0.75}, elapsed_s=26) == pytest.approx(26 * 6.75 / 3.25)
    assert (part_done("prepare", 9, 10), part_done("evaluate", 0, 10), part_done("start", 0, 0)) == (0, 1, 0)


def test_the_status_is_told_by_the_files_alone(mvtec, tmp_path):
    results = Results(tmp_path / "r")
    ids = ["aaa", "bbb", "ccc", "ddd"]
    write_run(results, RunFile(run_id="run-1", started=100.0, cells=dict.fromkeys(ids, 5.0)))
    # A later run that had nothing to run has nothing to show.
    write_run(results, RunFile(run_id="run-2", started=200.0, cells={}, finished=["aaa"]))
    results.write(CELLS, [{"cell_id": "aaa", "category": "x", "status": "ok", "run_id": "run-1"}])
    results.write(CELLS, [{"cell_id": "bbb", "category": "x", "status": "failed", "run_id": "run-1"}])
    acquire(results.storage, Holder(cell_id="ccc", run_id="run-1", label="stfpm x"))
    (state,) = states(results, now=110.0)
    assert dict(state.counts) == {"ok": 1, "failed": 1, "running": 1, "waiting": 1}
    assert [holder.label for holder in state.running] == ["stfpm x"]
    assert state.left_s == pytest.approx(10)


def test_an_end_that_is_to_be_replaced_does_not_count_as_done(tmp_path):
    results, ids = Results(tmp_path / "r"), ["aaa", "bbb", "ccc"]
    run = RunFile(
        run_id="run-2",
        started=100.0,
        cells=dict.fromkeys(ids, 5.0),
        replaces={"aaa": "run-1", "bbb": "run-1"},
    )
    write_run(results, run)
    for cell_id, run_id in (("aaa", "run-1"), ("bbb", "run-2"), ("ccc", "run-1")):
        results.write(CELLS, [{"cell_id": cell_id, "category": "x", "status": "ok", "run_id": run_id}])
    (state,) = states(results, now=110.0)
    assert (state.counts["ok"], state.counts["waiting"]) == (2, 1)


def test_status_says_it_in_words(mvtec, tmp_path, kdbench):
    words = [*STFPM, "--root", mvtec, *TINY, "--report", tmp_path / "o"]
    assert kdbench("status", "--results", tmp_path / "r") == (
        2,
        f"error: no run has begun in {tmp_path / 'r'}: `kdbench run --results {tmp_path / 'r'}` begins one\n",
    )
    assert kdbench("run", *words, "--results", tmp_path / "r")[0] == 0
    code, printed = kdbench("status", "--results", tmp_path / "r")
    assert code == 0
    assert ": 2 cells, 2 ok\n" in printed
    first, _ = read(tmp_path / "r", CELLS)["cell_id"].to_pylist()
    (tmp_path / f"r/cells/{first}.parquet").unlink()
    assert (
        "2 cells, 1 ok, 1 waiting\n  nobody is running it"
        in kdbench("status", "--results", tmp_path / "r")[1]
    )
    acquire(Storage(tmp_path / "r"), Holder(cell_id=first, run_id="x", label="a label", host="node7"))
    code, printed = kdbench("status", "--results", tmp_path / "r")
    assert "2 cells, 1 ok, 1 running, about " in printed
    assert f"  node7 (process {os.getpid()}): a label · start 0/0 images, for " in printed


def test_an_address_in_a_file_wins_over_the_environment(mvtec, tmp_path, kdbench, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "of-the-environment")
    file = tmp_path / "grid.toml"
    file.write_text('address = "of-the-file"')
    words = ["run", *STFPM, "--root", mvtec, *SMALL, "--config", file]
    assert kdbench(*words)[1].startswith("error: no Ray cluster at of-the-file: ")
    assert kdbench(*words, "--address", "of-the-line")[1].startswith("error: no Ray cluster at of-the-line: ")
    file.write_text("")
    assert kdbench(*words)[1].startswith("error: no Ray cluster at of-the-environment: ")


@slow
def test_a_timing_whose_process_is_killed_ends_no_other(mvtec, tmp_path):
    jobs = planned(mvtec, tmp_path / "r").jobs
    timed = timing.measure(jobs, ray_work.dies_at_bottles, executor="local", run_id="run-1")
    bottle, screw = (error for _, error in timed)
    assert bottle.startswith("BrokenProcessPool: ")
    assert screw == ""


@slow
def test_a_timing_on_ray_waits_for_a_machine_but_not_for_ever(ray_here, mvtec, tmp_path, monkeypatch):
    import ray

    jobs = planned(mvtec, tmp_path / "r").jobs

    def timed() -> list[str]:
        found = timing.measure(jobs, ray_work.dies_at_bottles, executor="ray", run_id="run-1")
        return [error for _, error in found]

    neighbour = ray.remote(num_cpus=1)(ray_work.Neighbour).remote()
    ray.get(neighbour.here.remote())
    monkeypatch.setattr(cluster, "FREE_S", 6.0)
    begun = time.monotonic()
    first, second = timed()
    assert first.endswith(" was not free within 0.1 minutes: something else uses the cluster")
    assert second == first
    assert 6 <= time.monotonic() - begun < 12  # the second is not waited for
    ray.kill(neighbour)
    monkeypatch.setattr(cluster, "FREE_S", 600.0)
    bottle, screw = timed()
    assert "died" in bottle
    assert screw == ""


@slow
def test_what_is_timed_on_ray_has_a_process_that_trained_nothing(ray_here):
    (node,) = cluster.ray_cluster().nodes
    ((_, trained),) = cluster.on_every_node(os.getpid)
    assert cluster.run_alone(node, 0, os.getpid) not in (trained, os.getpid())


def test_a_cluster_that_does_not_answer_is_a_complaint(mvtec, tmp_path, kdbench):
    """Ray is not there at a port that is closed; nothing is run instead."""
    words = ["--methods", "stfpm", "--dataset", "mvtec_ad", "--root", mvtec, *TINY[:-3], "--executor", "ray"]
    code, printed = kdbench("run", *words, "--address", "not-an-address", "--results", tmp_path / "r")
    assert code == 2
    assert printed.startswith("error: no Ray cluster at not-an-address: ")
    assert not (tmp_path / "r").exists()
