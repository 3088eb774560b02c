"""Which process on a GPU is ours and which a neighbour, by an nvidia-smi that says what a test wants."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_request

from kdbench.engine import device, latency
from kdbench.engine.device import unused_gpu
from kdbench.engine.nvidia import Gpus, SmiError, ask, gpus_here, others_on_gpu, own_numbers
from kdbench.errors import RequestError
from kdbench.grid.grid import plan_grid
from kdbench.grid.plan import choose_device

CUDA = torch.device("cuda")

# The n-th question about processes gets the n-th answer, further ones the last.
SMI = """#!/bin/sh
case "$1" in
--query-compute-apps=pid,*) cat "{folder}/users" ;;
--query-compute-apps=*) for file in "{folder}"/asked.*; do break; done
    cat "$file"
    set -- "{folder}"/asked.*
    [ $# -eq 1 ] || rm "$file" ;;
--query-gpu=uuid) printf "GPU-a\\nGPU-b\\n" ;;
*) printf "81559, Default\\n24564, Exclusive_Process\\n[N/A], Default\\n" ;;
esac
"""

Smi = Callable[..., None]


@pytest.fixture
def smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Smi:
    """Puts an nvidia-smi in the path that lists these processes: numbers at each question; lines of users."""

    def put(asked: Sequence[Sequence[object]] = ((),), users: str = "", script: str = SMI) -> None:
        folder = tmp_path / "smi"
        folder.mkdir()
        program = folder / "nvidia-smi"
        program.write_text(script.format(folder=folder))
        program.chmod(0o755)
        for index, numbers in enumerate(asked):
            (folder / f"asked.{index}").write_text("".join(f"{number}\n" for number in numbers))
        (folder / "users").write_text(users)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)

    return put


PARENTS = {str(os.getpid()), str(os.getppid())}


@pytest.mark.parametrize(
    ("before", "after", "ours"),
    [
        (["7"], ["7", str(os.getpid())], set()),  # the list has our own numbers
        (["7"], ["7", "4711"], {"4711"}),  # a container, and the list has the numbers of the host
        (["7"], ["7"], set()),  # this process had begun to use the GPU before
        (["7"], ["7", "4711", "4712"], set()),  # which of the two nobody knows: better busy than wrong
    ],
)
def test_the_number_of_this_process_is_what_its_first_use_adds(smi, before, after, ours):
    smi([before, after])
    found = own_numbers(lambda: None)
    assert found >= PARENTS
    assert found & {"7", "4711", "4712", str(os.getpid())} == ours | {str(os.getpid())}


def test_the_gpu_is_used_between_the_two_questions(smi, tmp_path):
    smi([[], [4711], [4712]])
    left = []
    own_numbers(lambda: left.extend(path.name for path in sorted((tmp_path / "smi").glob("asked.*"))))
    assert left == ["asked.1", "asked.2"]


USERS = "11, GPU-a, python\n12, GPU-a, [Not Found]\n13, GPU-b, train.py\n14, GPU-a, a, b\n\n"


def test_only_others_on_this_gpu_are_neighbours(smi):
    smi(users=USERS)
    assert others_on_gpu("GPU-a", {"11"}) == ["[Not Found] on the GPU", "a, b on the GPU"]
    assert others_on_gpu("GPU-b", {"11"}) == ["train.py on the GPU"]


def test_on_a_slice_of_a_gpu_all_users_count_since_the_list_does_not_know_slices(smi):
    smi(users=USERS)
    assert len(others_on_gpu("GPU-of-a-slice", {"11"})) == 3


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("#!/bin/sh\necho no; echo 'Unable to determine the device handle'; exit 9", "fails: Unable to"),
        ("not a program", "does not answer: "),
    ],
)
def test_an_nvidia_smi_that_fails_makes_a_timing_busy_and_loses_none(smi, monkeypatch, script, said):
    smi(script=script)
    facts = SimpleNamespace(uuid="a")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    with pytest.raises(SmiError, match=said):
        ask("gpu", "uuid")
    assert own_numbers(lambda: None) >= PARENTS
    (neighbour,) = latency._on_gpu(CUDA, frozenset())
    assert neighbour.startswith(f"unknown: nvidia-smi {said}")


def test_the_smallest_gpu_and_the_mode_of_each_count(smi):
    smi()
    assert gpus_here() == Gpus(24564 << 20, exclusive=True)


def test_without_an_nvidia_smi_a_neighbour_is_assumed(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    assert latency._on_gpu(CUDA, frozenset()) == ["unknown: there is no nvidia-smi to ask"]
    assert gpus_here() == Gpus(0, exclusive=False)


@pytest.mark.parametrize(("cores", "busy"), [(0.2, False), (15.9, False), (16.1, True)])
def test_beside_a_gpu_the_cores_of_a_large_node_may_be_used_in_part(smi, monkeypatch, cores, busy):
    smi(users=USERS)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="a"))
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    others = SimpleNamespace(used=lambda without: [("kubelet", cores)])
    monkeypatch.setattr(latency, "Others", lambda: others)
    found = latency._Neighbours(CUDA, {"11", "12", "14"}).found()
    assert found == ([f"kubelet: {cores:.2f} cores"] if busy else [])


def test_a_driver_that_is_too_old_is_said_and_nothing_runs_on_the_cpu_in_silence(
    mvtec, tmp_path, kdbench, monkeypatch
):
    driver = tmp_path / "version"
    driver.write_text("NVRM version: 550.54")
    monkeypatch.setattr(device, "DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", "13.2")

    def refuses() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040). Please update")

    monkeypatch.setattr(torch.cuda, "init", refuses)
    why = unused_gpu()
    assert (
        f"torch {torch.__version__} for CUDA 13.2 finds no GPU: The NVIDIA driver on your system is too"
        in why
    )
    assert why.endswith("Update the driver, or install a torch for the CUDA that nvidia-smi names")
    assert f"cells run on the CPU: {why}" in plan_grid(tiny_request(mvtec, tmp_path / "r")).notices
    with pytest.raises(
        RequestError, match="this machine has 0 CUDA devices; this machine has an NVIDIA driver"
    ):
        choose_device("cuda")
    assert "12040" in kdbench("doctor")[1]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "the installed torch is for CPUs only" in unused_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # somebody chose the CPU
    assert unused_gpu() == ""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    driver.unlink()
    assert unused_gpu() == ""
