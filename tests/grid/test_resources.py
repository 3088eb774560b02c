"""What a cell needs, what machines have, in which order cells start, and when the last will end."""

import json
from dataclasses import replace

import pytest
import torch

from kdbench import machine
from kdbench.cli.run import show_plan
from kdbench.engine.device import CONTEXT_BYTES
from kdbench.engine.nvidia import Gpus
from kdbench.errors import RequestError
from kdbench.grid.cluster import Cluster, Need, Node, makespan_s, this_machine
from kdbench.grid.costs import (
    Costs,
    estimate,
    expected_seconds,
    known_seconds,
    longest_first,
    with_needs,
)
from kdbench.grid.execution import refuse_impossible
from kdbench.grid.grid import plan_grid
from kdbench.grid.plan import plan
from kdbench.grid.request import Request, read_request

GIB = 2**30


def node(cpus: float = 4, gpus: float = 0, gib: float = 16, name: str = "a") -> Node:
    return Node(name=name, cpus=cpus, gpus=gpus, memory_bytes=gib * GIB)


def cluster(*nodes: Node) -> Cluster:
    return Cluster(nodes=nodes)


@pytest.mark.parametrize(
    ("need", "fits"),
    [
        (Need(cpus=1), 4),
        (Need(cpus=3), 1),
        (Need(cpus=5), 0),
        (Need(cpus=1, gpus=0.3), 3),
        (Need(cpus=1, gpus=0.1), 4),
        (Need(cpus=1, gpus=1.5), 0),
        (Need(cpus=1, memory_bytes=6 * GIB), 2),
        (Need(cpus=1, memory_bytes=17 * GIB), 0),
    ],
)
def test_how_many_cells_fit(need, fits):
    assert node(gpus=1).fits(need) == fits
    assert cluster(node(gpus=1), node(cpus=0)).fits(need) == fits


@pytest.mark.parametrize(("share", "fits"), [(0.6, 8), (0.3, 24), (0.5, 16), (0.1, 80), (1.0, 8)])
def test_a_cell_has_its_share_of_one_gpu(share, fits):
    many = node(cpus=100, gpus=8)
    assert many.fits(Need(cpus=1, gpus=share)) == fits
    assert makespan_s([(1.0, Need(cpus=1, gpus=share))] * (fits + 1), cluster(many)) == 2


def test_the_makespan_is_that_of_starting_each_where_it_first_fits():
    one, two = Need(cpus=1), cluster(node(cpus=2))
    assert makespan_s([], two) == 0
    assert makespan_s([(5, one)], two) == 5
    assert makespan_s([(4, one), (3, one), (3, one), (2, one)], two) == 6
    assert makespan_s([(2, one), (3, one), (3, one), (4, one)], two) == 7  # shortest first ends later
    assert makespan_s([(4, one), (4, Need(cpus=2)), (1, one)], two) == 9  # nobody overtakes
    assert makespan_s([(4, one), (4, one)], cluster(node(cpus=1), node(cpus=1, name="b"))) == 4
    with pytest.raises(ValueError, match="no node has 1 CPU, 1 GPU"):
        makespan_s([(1, Need(gpus=1))], two)


def request(root, **changes):
    asked = {
        "methods": ("stfpm",),
        "dataset": ("mvtec_ad",),
        "root": root,
        "backbone": "tiny",
        "epochs": 2,
        "set": {"all.image_size": 32},
    }
    return Request(**(asked | changes))


def row(job, **values):
    """A row of an earlier run of a job's cell: 10 images trained 2 times, 8 tested."""
    cell = {"cell_id": job.cell.id, "method": job.cell.method, "config": job.cell.config, "status": "ok"}
    took = {"prepare_s": 1.0, "train_s": 40.0, "evaluate_s": 4.0, "device": "cpu", "num_threads": 1}
    counts = {"num_train": 8, "num_heldout": 2, "num_test": 8}
    memory = {"peak_memory_bytes": 2 * GIB, "peak_ram_bytes": None, "device_memory_bytes": 16 * GIB}
    return cell | took | counts | memory | {"teacher_cache": "device"} | values


def test_times_are_learnt_from_rows_of_the_nearest_kind(mvtec):
    planned = plan(request(mvtec, categories=("bottle",), set={"all.image_size": [32, 64]}))
    small, large = planned.jobs
    costs = Costs([row(small)])
    assert known_seconds(small, planned.data, costs) == pytest.approx(1 + 40 + 4)
    assert known_seconds(large, planned.data, costs) == pytest.approx(1 + 4 * 40 + 4 * 4)  # by its pixels
    both = Costs([row(small), row(large, train_s=100.0)])
    assert known_seconds(large, planned.data, both) == pytest.approx(1 + 100 + 4)
    assert known_seconds(small, planned.data, Costs([row(small, status="failed")])) is None
    assert known_seconds(small, planned.data, Costs([row(small, method="dcam")])) is None


def test_more_epochs_take_longer(mvtec):
    short, long = (plan(request(mvtec, categories=("bottle",), epochs=n)) for n in (2, 6))
    costs = Costs([row(short.jobs[0])])
    assert known_seconds(long.jobs[0], long.data, costs) == pytest.approx(1 + 3 * 40 + 4)


def test_the_longest_starts_first_and_equal_ones_keep_their_order(mvtec):
    planned = plan(request(mvtec, setting=("oneclass", "multiclass"), seeds=(0, 1)))
    ordered = longest_first(planned.jobs, planned.data, Costs([]))
    assert [(j.cell.setting, j.cell.category, j.cell.seed) for j in ordered] == [
        ("multiclass", "all", 0),
        ("multiclass", "all", 1),
        ("oneclass", "bottle", 0),
        ("oneclass", "screw", 0),
        ("oneclass", "bottle", 1),
        ("oneclass", "screw", 1),
    ]
    slow = next(j for j in planned.jobs if j.cell.category == "screw" and j.cell.seed == 0)
    dcam = row(slow, train_s=4000.0)
    costs = Costs([dcam])
    expected = expected_seconds(planned.jobs, planned.data, costs)
    assert expected[slow.cell.id] == pytest.approx(1 + 4000 + 4)


def needs(request_, machines, rows=()):
    planned = plan(request_, machines if machines.gpus else None)
    return with_needs(planned.jobs, request_, machines, Costs(rows), planned.data)


def test_cells_share_the_cpus_by_the_whole_grid(mvtec):
    four = cluster(node(cpus=8))
    grid = request(mvtec, seeds=(0, 1))  # 2 categories x 2 seeds
    assert [(j.need.cpus, j.place.num_threads) for j in needs(grid, four)] == [(2, 2)] * 4
    asked = request(mvtec, seeds=(0, 1), cpus_per_cell=3)
    assert {j.place.num_threads for j in needs(asked, four)} == {3}
    alone = request(mvtec, seeds=(0, 1), executor="local")
    assert {(j.need.cpus, j.place.num_threads) for j in needs(alone, four)} == {(8, None)}
    many = request(mvtec, seeds=tuple(range(20)))
    assert {j.need.cpus for j in needs(many, four)} == {1}


def test_a_machine_has_the_cores_and_memory_of_its_container_and_torch_is_told(mvtec, monkeypatch):
    """Torch would start a thread for each core of the machine, and all would wait for the quota."""
    monkeypatch.setattr(machine, "cores", lambda: 3)
    monkeypatch.setattr(machine, "memory_bytes", lambda: 5 * GIB)
    for quota, threads in ((None, None), (3.5, 3)):
        monkeypatch.setattr(machine, "core_quota", lambda quota=quota: quota)
        here = this_machine()
        assert (here.cpus, here.nodes[0].memory_bytes) == (3, 5 * GIB)
        alone = request(mvtec, executor="local")
        assert {(j.need.cpus, j.place.num_threads) for j in needs(alone, here)} == {(3, threads)}


def test_a_gpu_is_shared_by_what_was_measured(mvtec):
    machines = cluster(node(cpus=32, gpus=2))
    grid = request(mvtec, categories=("bottle",))
    (unknown,) = needs(grid, machines)
    assert (unknown.need.gpus, unknown.place.gpu_share, unknown.need.cpus) == (1.0, 1.0, 4)
    assert unknown.place.device == "cuda"
    seen = row(unknown, device="cuda", peak_memory_bytes=2 * GIB, device_memory_bytes=16 * GIB)
    (known,) = needs(grid, machines, [seen])
    assert known.need.gpus == 0.3  # (1.25 * 2 + 1) / 16 = 0.22
    assert known.place.gpu_share == 0.3
    assert known.need.memory_bytes == 0
    (with_ram,) = needs(grid, machines, [seen | {"peak_ram_bytes": 4 * GIB}])
    assert with_ram.need.memory_bytes == 5 * GIB  # ten cells beside one GPU can fill the RAM
    (asked,) = needs(request(mvtec, categories=("bottle",), gpus_per_cell=0.5), machines, [seen])
    assert asked.need.gpus == 0.5


@pytest.mark.parametrize(
    ("nodes", "cpus"),
    [
        ([node(cpus=32), *[node(cpus=2, gpus=1, name=name) for name in "bcde"]], 2),
        ([node(cpus=16, gpus=8), node(cpus=64, gpus=8, name="b")], 2),
        ([node(cpus=2, gpus=4)], 1),
    ],
)
def test_the_cores_beside_a_gpu_are_those_of_gpu_nodes(mvtec, nodes, cpus):
    jobs = needs(request(mvtec), cluster(*nodes))
    assert {job.need.cpus for job in jobs} == {cpus}
    refuse_impossible(jobs, cluster(*nodes))


def test_a_share_of_a_gpu_brings_its_share_of_the_cores(mvtec):
    machines = cluster(node(cpus=16, gpus=4))
    half = needs(request(mvtec, gpus_per_cell=0.5), machines)
    assert {job.need.cpus for job in half} == {2}
    assert machines.fits(half[0].need) == 8


@pytest.mark.parametrize(("cpus", "together"), [(16, 16), (64, 64), (128, 80)])
def test_small_cells_fill_all_gpus_of_a_node(mvtec, cpus, together):
    """Each takes one core, and not the four of a whole GPU."""
    machines = cluster(node(cpus=cpus, gpus=8, gib=500))
    (unknown,) = needs(request(mvtec, categories=("bottle",)), machines)
    seen = row(unknown, device="cuda", peak_memory_bytes=4 * GIB, device_memory_bytes=80 * GIB)
    (small,) = needs(request(mvtec, categories=("bottle",)), machines, [seen])
    assert (small.need.gpus, small.need.cpus) == (0.1, 1)
    assert machines.fits(small.need) == together


@pytest.mark.parametrize(
    ("peak", "measured_on", "smallest", "share"),
    [
        (5, 80, 80, 0.1),  # (1.25 * 5 + 1) / 80 = 0.09
        (5, 80, 24, 0.4),  # the same bytes of a small GPU: a share of 0.1 would end each cell there
        (5, 24, 80, 0.4),  # at least what was measured: a slice of a GPU hides how small it is
        (5, 80, 0, 0.1),  # nobody could be asked
        (20, 80, 24, 1.0),
    ],
)
def test_a_share_is_enough_on_the_smallest_gpu(mvtec, peak, measured_on, smallest, share):
    large = replace(node(cpus=8, gpus=1), gpus_are=Gpus(80 * GIB))
    small = replace(node(cpus=8, gpus=1, name="b"), gpus_are=Gpus(smallest * GIB))
    machines = cluster(node(cpus=64), large, small)
    (unknown,) = needs(request(mvtec, categories=("bottle",)), machines)
    seen = row(unknown, device="cuda", peak_memory_bytes=peak * GIB, device_memory_bytes=measured_on * GIB)
    (job,) = needs(request(mvtec, categories=("bottle",)), machines, [seen])
    assert job.need.gpus == job.place.gpu_share == share


def test_what_a_cell_may_take_in_its_share_is_what_was_measured_with_its_cache(mvtec):
    """Else later cells would lose the cache of the first one: slower, and with other last digits."""
    machines, grid = cluster(node(cpus=32, gpus=2)), request(mvtec, categories=("bottle",))
    (first,) = needs(grid, machines)
    assert first.place.cache == "auto"
    for peak in (0.1, 1, 3, 7, 11, 11.9, 13):
        for cache in ("device", "recomputed"):
            seen = row(first, device="cuda", peak_memory_bytes=int(peak * GIB), teacher_cache=cache)
            (later,) = needs(grid, machines, [seen])
            assert later.place.cache == (cache if later.need.gpus < 1 else "auto")
            assert later.place.gpu_share * 16 * GIB - CONTEXT_BYTES >= peak * GIB or later.need.gpus == 1
    few = row(first, device="cuda", num_train=10, teacher_cache="device")
    many = row(first, device="cuda", num_train=100, cell_id="many", teacher_cache="recomputed")
    (later,) = needs(grid, machines, [few, many])
    assert (later.need.gpus, later.place.cache) == (0.3, "device")
    (asked,) = needs(request(mvtec, categories=("bottle",), gpus_per_cell=0.5), machines, [few])
    assert (asked.need.gpus, asked.place.cache) == (0.5, "auto")  # nobody knows what fits there


def test_a_gpu_for_one_process_only_is_never_shared(mvtec):
    machines = cluster(replace(node(cpus=32, gpus=2), gpus_are=Gpus(16 * GIB, exclusive=True)))
    grid = request(mvtec, categories=("bottle",))
    (unknown,) = needs(grid, machines)
    (known,) = needs(grid, machines, [row(unknown, device="cuda")])
    assert (known.need.gpus, known.place.gpu_share) == (1.0, 1.0)
    with pytest.raises(RequestError, match=r"--gpus-per-cell 0\.5: a GPU here takes one process only"):
        needs(request(mvtec, gpus_per_cell=0.5), machines)


def test_more_than_one_gpu_for_a_cell_is_refused():
    with pytest.raises(RequestError, match=r"gpus_per_cell=1\.5: input should be less than or equal to 1"):
        read_request(None, {"gpus_per_cell": 1.5})


def test_a_cluster_without_processors_is_named(mvtec):
    with pytest.raises(RequestError, match=r"no node has a CPU for a cell\. The cluster has a: 0 CPUs"):
        needs(request(mvtec), cluster(node(cpus=0)))


def test_a_share_of_a_gpu_is_learnt_from_no_smaller_cell(mvtec):
    """It is a hard cap, so what needs more than the cells that were measured must not get theirs."""
    machines = cluster(node(cpus=32, gpus=2))
    (bottle,) = needs(request(mvtec, categories=("bottle",)), machines)
    seen = row(bottle, device="cuda")
    alike = {"epochs": 6}, {"categories": ("screw",)}
    more_images = {"setting": ("multiclass",), "categories": ()}
    larger = {"set": {"all.image_size": 64}}, {"set": {"all.image_size": 32, "all.batch_size": 16}}

    def share(**changes):
        return {job.need.gpus for job in needs(request(mvtec, **changes), machines, [seen])}

    assert [share(**({"categories": ("bottle",)} | changes)) for changes in alike] == [{0.3}, {0.3}]
    assert share(**more_images) == {1.0}
    assert [share(**({"categories": ("bottle",)} | changes)) for changes in larger] == [{1.0}, {1.0}]
    assert share(categories=("bottle",), methods=("dcam",)) == {1.0}


def test_memory_is_set_aside_by_what_was_measured_but_never_more_than_there_is(mvtec):
    grid, machine = request(mvtec, categories=("bottle",)), cluster(node(gib=16))
    (job,) = needs(grid, machine)
    assert job.need.memory_bytes == 0
    assert needs(grid, machine, [row(job)])[0].need.memory_bytes == 2.5 * GIB
    huge = row(job, peak_memory_bytes=15 * GIB)
    assert needs(grid, machine, [huge])[0].need.memory_bytes == 16 * GIB
    asked = request(mvtec, categories=("bottle",), memory_per_cell=20)
    assert needs(asked, machine)[0].need.memory_bytes == 20 * GIB


def test_a_guess_of_the_memory_is_what_a_node_has_that_runs_the_cell(mvtec):
    grid = request(mvtec, categories=("bottle",), cpus_per_cell=4)
    machines = cluster(node(cpus=4, gib=8), node(cpus=2, gib=64, name="b"))
    (job,) = needs(grid, machines)
    (known,) = needs(grid, machines, [row(job, peak_memory_bytes=15 * GIB)])
    assert known.need.memory_bytes == 8 * GIB
    assert machines.fits(known.need) == 1


def test_memory_is_learnt_from_cells_of_the_configuration_with_about_as_many_images(mvtec):
    """What a multiclass cell of 15 categories took would let no two oneclass cells run side by side."""
    machine, grid = cluster(node(gib=16)), request(mvtec, categories=("bottle",))  # 10 images
    (job,) = needs(grid, machine)
    for images, learnt in ((4, 0), (5, 2.5), (10, 2.5), (20, 2.5), (21, 0), (150, 0)):
        (known,) = needs(grid, machine, [row(job, num_train=images - 2)])
        assert known.need.memory_bytes == learnt * GIB, images
    for changes in {"set": {"all.image_size": 64}}, {"methods": ("dcam",)}:
        (unknown,) = needs(request(mvtec, **{"categories": ("bottle",)} | changes), machine, [row(job)])
        assert unknown.need.memory_bytes == 0, changes
    (longer,) = needs(request(mvtec, categories=("bottle",), epochs=6), machine, [row(job)])
    assert longer.need.memory_bytes == 2.5 * GIB
    assert needs(grid, machine, [row(job, peak_memory_bytes=None)])[0].need.memory_bytes == 0


def test_a_need_never_changes_what_a_cell_is(mvtec):
    one, other = (needs(request(mvtec), cluster(node(cpus=n))) for n in (1, 64))
    assert [j.cell.id for j in one] == [j.cell.id for j in other]
    assert json.loads(one[0].cell.config) == json.loads(other[0].cell.config)


def test_how_long_what_only_other_machines_can_run_takes_is_unknown(mvtec, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    machines = cluster(node(cpus=32, gpus=2))
    grid = plan_grid(request(mvtec, results=tmp_path / "r"), machines)
    first, second = grid.todo
    expected = estimate(grid)
    assert expected.cells == {first.cell.id: None, second.cell.id: None}
    assert (expected.one_by_one_s, expected.together_s) == (None, None)
    show_plan(grid, expected)
    said = capsys.readouterr().out
    assert said.count("unknown") == 2
    assert "2 of 2 cells to run with ray: a: 32 CPUs, 2 GPUs, 16.0 GiB\nno estimate" in said
    learnt = replace(grid, costs=Costs([row(job, device="cuda") for job in grid.todo]))
    assert estimate(learnt).cells == {job.cell.id: pytest.approx(1 + 40 + 4) for job in grid.todo}
    assert estimate(learnt).one_by_one_s == pytest.approx(90)
    assert estimate(learnt).together_s == pytest.approx(45)  # two GPUs
    alone = replace(learnt, executor="local")
    assert estimate(alone).together_s == pytest.approx(90)
