"""Ray: where it is started, joined and asked, and what is said if it cannot be."""

import os
import signal
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import SMALL, STFPM, tiny_jobs, tiny_request
from ray_work import on_a_node_with_a_broken_gpu, sees_gpus, takes_a_moment

from kdbench.errors import RequestError
from kdbench.grid import schedule
from kdbench.grid.cluster import (
    Cluster,
    LostError,
    Need,
    Node,
    on_every_node,
    run_alone,
    session,
    wait_for_gpus,
)
from kdbench.grid.costs import Costs, with_needs
from kdbench.grid.execution import Execution
from kdbench.grid.plan import plan
from kdbench.grid.prepare import marked, prepare_nodes, unseen
from kdbench.results.storage import Storage

slow = pytest.mark.slow
TWO_CORES = Cluster(nodes=(Node(name="a", cpus=2, gpus=0, memory_bytes=2**30),))
RAY = (*SMALL, "--executor", "ray", "--cpus-per-cell", "1", "--no-latency")


@pytest.fixture
def long_folder(tmp_path):
    """A folder with a name as long as those that SLURM and macOS make for temporary files."""
    folder = tmp_path / ("t" * 90)
    folder.mkdir()
    return folder


@slow
def test_a_long_temporary_folder_does_not_break_rays_sockets(mvtec, tmp_path, long_folder):
    words = ["run", *STFPM, "--root", mvtec, *RAY, "--results", tmp_path / "r", "--out", tmp_path / "o"]
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"TMPDIR": str(long_folder)},
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    assert "cells: 2 ok" in done.stdout


def test_a_folder_for_sockets_that_cannot_be_written_is_one_complaint(mvtec, tmp_path, kdbench, monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "gone"))
    words = [*STFPM, "--root", mvtec, *RAY, "--results", tmp_path / "r"]
    code, printed = kdbench("run", *words)
    assert code == 2
    assert printed.splitlines()[-1] == (
        f"error: Ray puts its sockets in a folder and cannot write in {tmp_path / 'gone'}. "
        "Set RAY_TMPDIR to a folder of this machine whose name has at most 24 bytes. "
        "`kdbench run --executor local` needs no Ray"
    )


@slow
def test_what_ray_raises_when_it_starts_is_one_complaint(monkeypatch, long_folder):
    monkeypatch.setenv("RAY_TMPDIR", str(long_folder))
    with pytest.raises(RequestError) as raised, session(None, TWO_CORES):
        pass
    (complaint,) = raised.value.complaints
    assert complaint.startswith("Ray does not start here: ")
    assert "AF_UNIX path length cannot exceed 107 bytes" in complaint
    assert complaint.endswith("`kdbench run --executor local` needs no Ray")
    assert list(long_folder.iterdir()) == []


@slow
def test_a_session_leaves_nothing_behind(monkeypatch, tmp_path):
    import ray

    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        monkeypatch.setenv("RAY_TMPDIR", short)
        before = signal.getsignal(signal.SIGTERM)
        with session(None, TWO_CORES) as cluster:
            assert cluster.cpus == 2
            assert signal.getsignal(signal.SIGTERM) is before
            assert len(list(Path(short).iterdir())) == 1
            with session() as again:
                assert again == cluster
            assert ray.is_initialized()
            with pytest.raises(LostError, match="ZeroDivisionError: "):
                run_alone(cluster.nodes[0], 0, divmod, 1, 0)
            assert run_alone(cluster.nodes[0], 0, divmod, 7, 2) == (3, 1)
        assert not ray.is_initialized()
        assert list(Path(short).iterdir()) == []


@slow
def test_every_node_is_asked_and_those_that_do_not_see_a_folder_are_named(mvtec, tmp_path):
    from ray.cluster_utils import Cluster as TwoNodes

    two = TwoNodes(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        two.add_node(num_cpus=1)
        with session(two.address) as cluster:
            found = on_every_node(divmod, 7, 2)
            assert [answer for _, answer in found] == [(3, 1)] * 2
            assert {node.id for node, _ in found} == {node.id for node in cluster.nodes}
            with pytest.raises(RequestError) as raised:
                on_every_node(divmod, 1, 0)
            assert len(raised.value.complaints) == 2
            # The folder of this process's own thread: on the same machine, but only this process sees it.
            own = f"/proc/self/task/{os.getpid()}"
            assert Path(own).exists()
            jobs = tiny_jobs(mvtec, tmp_path / "r")
            with pytest.raises(RequestError) as raised, marked(Storage(tmp_path / "r")) as marker:
                prepare_nodes([_moved(job, own) for job in jobs], {}, marker)
            assert len(raised.value.complaints) == 2
            for complaint in raised.value.complaints:
                assert complaint.endswith(f"does not see the images {own}; it must be on shared storage")
            assert Storage(tmp_path / "r").unfinished("cells") == []
    finally:
        two.shutdown()


@slow
def test_gpus_of_nodes_that_come_later_are_waited_for_and_then_used(mvtec, tmp_path, monkeypatch):
    """Nearly all cores are those of the node that starts cells, and a node with a GPU has two."""
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    asked = tiny_request(mvtec, tmp_path / "r", seeds=(0, 1), categories=("bottle",))
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 32, "num_gpus": 0})
    try:
        with session(nodes.address):
            with pytest.raises(RequestError, match=r"2 GPUs did not come within 0\.001 minutes"):
                wait_for_gpus(2, 0.06)
            with ThreadPoolExecutor(1) as thread:
                waiting = thread.submit(wait_for_gpus, 2, 120)
                for _ in range(2):
                    nodes.add_node(num_cpus=2, num_gpus=1)
                cluster = waiting.result()
            assert (cluster.cpus, cluster.gpus) == (36, 2)
            planned = plan(asked, cluster)
            jobs = with_needs(planned.jobs, asked, cluster, Costs([]), planned.data)
            assert [(job.need.cpus, job.need.gpus) for job in jobs] == [(2, 1.0)] * 2
            execution = on_nodes(jobs, planned, nodes.address, sees_gpus)
            assert [outcome.summary for outcome in schedule.execute(execution)] == ["0", "0"]
    finally:
        nodes.shutdown()


def on_nodes(jobs, planned, address, work):
    """The jobs of a plan as a run on the nodes of a cluster."""
    of_run = {"data": planned.data, "run_id": "run-1", "executor": "ray", "address": address}
    return Execution(jobs=jobs, work=work, **of_run)


@slow
def test_a_cell_that_needs_a_whole_gpu_does_not_starve_behind_shares(mvtec, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    shares = [0.5] * 4 + [1.0] + [0.5] * 8
    asked = tiny_request(mvtec, tmp_path / "r", seeds=tuple(range(len(shares))), categories=("bottle",))
    needs = [Need(cpus=1, gpus=share) for share in shares]
    jobs = [replace(job, need=need) for job, need in zip(plan(asked).jobs, needs, strict=True)]
    here = Cluster(nodes=(Node(name="a", cpus=8, gpus=2, memory_bytes=2**30),))
    with session(None, here):
        execution = Execution(jobs=jobs, data={}, run_id="run-1", executor="ray", work=takes_a_moment)
        outcomes = {outcome.cell_id: float(outcome.summary) for outcome in schedule.execute(execution)}
    begun = [outcomes[job.cell.id] for job in jobs]
    assert sum(time < begun[4] for time in begun) == 4  # those that were submitted before it


@slow
def test_a_node_with_a_broken_gpu_fails_no_cell_although_it_is_always_free(mvtec, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster as Nodes

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    asked = tiny_request(mvtec, tmp_path / "r", seeds=tuple(range(4)), categories=("bottle",))
    planned = plan(asked)
    jobs = [replace(job, need=Need(cpus=1, gpus=1)) for job in planned.jobs]
    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 0})
    try:
        broken = nodes.add_node(num_cpus=1, num_gpus=1).node_id
        nodes.add_node(num_cpus=1, num_gpus=1)
        Storage(tmp_path / "r").write("broken", broken.encode())
        with session(nodes.address):
            execution = on_nodes(jobs, planned, nodes.address, on_a_node_with_a_broken_gpu)
            outcomes = list(schedule.execute(execution))
    finally:
        nodes.shutdown()
    assert [outcome.status for outcome in outcomes] == ["ok"] * 4
    drawn = [name.partition("-")[0] for name in Storage(tmp_path / "r").names("attempts")]
    assert 1 <= len(set(drawn)) == len(drawn)  # at most once each


def test_what_a_machine_does_not_see_is_named(mvtec, tmp_path):
    jobs = tiny_jobs(mvtec, tmp_path / "r")
    Storage(tmp_path / "r").write("cells/.seen.tmp", b"here")
    assert unseen(jobs, "cells/.seen.tmp") == []
    gone = tmp_path / "gone"
    assert unseen([_moved(job, str(gone)) for job in jobs], "cells/.other.tmp") == [
        f"does not see the results folder {tmp_path / 'r'}; it must be on shared storage",
        f"does not see the images {gone}; it must be on shared storage",
    ]


def _moved(job, root):
    return replace(job, place=replace(job.place, root=root))
