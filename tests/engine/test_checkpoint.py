"""A training that is taken up again gives, bit for bit, what it would have given in one go."""

import errno
import io
import re
from io import StringIO

import pytest
import torch
from conftest import ALL_SET, slow_but, write_category
from rich.console import Console

from kdbench.cell import STOPPED
from kdbench.engine import train
from kdbench.engine.checkpoint import Checkpoints, remove_checkpoint
from kdbench.engine.run import run_cell
from kdbench.errors import CellStopped
from kdbench.grid.attempt import execute_cell
from kdbench.grid.bars import Bars
from kdbench.grid.plan import plan
from kdbench.grid.request import Request
from kdbench.registry import get_method, method_names
from kdbench.results.storage import Storage

CODE = {"torch_version": "1", "num_threads": 1}


class Lost(BaseException):
    """As sudden as a SIGKILL: no `except Exception` sees it."""


def job(root, results, **changes):
    asked = {
        "methods": ("stfpm",),
        "dataset": ("mvtec_ad",),
        "root": root,
        "backbone": "tiny",
        "epochs": 4,
        "set": {"all.image_size": 32, "all.batch_size": 4},
        "results": results,
        "cpus_per_cell": 1,
        "checkpoint_every": 1e-9,
        "categories": ("bottle",),
    }
    (planned,) = plan(Request(**(asked | changes))).jobs
    return planned


def smallest_job(folder, results, method, **changes):
    """A job of a method with its smallest network, on images in `folder`; `results` is a name there."""
    write_category(folder / "mvtec", "bottle", seed=1)
    smallest = dict(get_method(method).tiny)
    changes["backbone"] = smallest.pop("backbone", "tiny")
    if smallest:
        own = {f"{method}.{key}": value for key, value in smallest.items()}
        changes["set"] = ALL_SET | own | {"all.image_size": 64}
    return job(folder / "mvtec", folder / results, methods=(method,), **changes)


def raising(error, epoch):
    """A function to tell of progress that raises in the middle of an epoch."""
    begun = []

    def watch(progress):
        if progress.phase == "train" and progress.epoch == epoch:
            begun.append(progress.done)
            if progress.done > begun[0]:
                raise error

    return watch


def lose(planned, epoch):
    """Run a cell until its worker is lost in the middle of an epoch."""
    with pytest.raises(Lost):
        execute_cell(planned.cell, planned.place, "run-1", raising(Lost(), epoch))


def stop(planned, epoch):
    """Run a cell until it is asked to stop, in the middle of an epoch; returns its outcome."""
    return execute_cell(planned.cell, planned.place, "run-1", raising(CellStopped(), epoch))


def numbers(rows):
    taken = ("prepare_s", "train_s", "evaluate_s", "started_at", "run_id", "resumed_at_epoch")
    return [{k: v for k, v in row.items() if k not in taken and not k.startswith("peak_")} for row in rows]


@pytest.mark.parametrize("interrupt", [lose, stop])
@pytest.mark.parametrize("method", slow_but(method_names(), "stfpm"))
def test_a_training_that_was_interrupted_goes_on_as_if_nothing_had_happened(tmp_path, method, interrupt):
    planned, undisturbed = (smallest_job(tmp_path, name, method) for name in ("r", "u"))
    whole = run_cell(undisturbed.cell, undisturbed.place, lambda progress: None)
    interrupt(planned, epoch=3)
    assert Storage(tmp_path / "r").names("checkpoints") == [f"checkpoints/{planned.cell.id}.pt"]
    again = run_cell(planned.cell, planned.place, lambda progress: None)
    assert again.rows[0]["resumed_at_epoch"] == 3
    assert whole.rows[0]["resumed_at_epoch"] is None
    assert numbers(again.rows) == numbers(whole.rows)
    assert again.scores == whole.scores
    assert all(torch.equal(again.detector[name], tensor) for name, tensor in whole.detector.items())


def test_a_checkpoint_of_another_cell_is_refused(mvtec, tmp_path):
    """Seeds have states of the same names and shapes: one would go on as the other."""
    storage, (first, other) = (
        Storage(tmp_path / "r"),
        [job(mvtec, tmp_path / "r", seeds=(s,)) for s in (0, 1)],
    )
    lose(first, epoch=3)
    content = storage.read(f"checkpoints/{first.cell.id}.pt")
    name = f"checkpoints/{other.cell.id}.pt"
    storage.write(name, content)
    said = (
        f"{storage.path(name)} is the checkpoint of {first.cell.id}. Delete it: the cell will be trained anew"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        run_cell(other.cell, other.place, lambda progress: None)
    older = torch.load(io.BytesIO(content), weights_only=True)
    del older["of"]
    buffer = io.BytesIO()
    torch.save(older, buffer)
    storage.write(f"checkpoints/{first.cell.id}.pt", buffer.getvalue())
    assert run_cell(first.cell, first.place, lambda progress: None).rows[0]["resumed_at_epoch"] == 3


def test_a_cell_that_is_asked_to_stop_keeps_what_it_did(mvtec, tmp_path):
    """Ten images in batches of four, two of them held out: an epoch has two batches."""
    planned, storage = job(mvtec, tmp_path / "r", checkpoint_every=1000), Storage(tmp_path / "r")
    stopped = stop(planned, epoch=1)  # in the first epoch, long before a checkpoint is due
    assert (stopped.status, stopped.error) == (STOPPED, "")
    assert storage.names("cells") == storage.names("leases") == []
    seen = []
    assert execute_cell(planned.cell, planned.place, "run-2", seen.append).status == "ok"
    trained = [progress.done for progress in seen if progress.phase == "train"]
    assert trained[1:3] == [4, 8]
    assert storage.names("checkpoints") == []


def test_a_cell_that_keeps_no_checkpoints_says_so_when_it_is_asked_to_stop(mvtec, tmp_path):
    stopped = stop(job(mvtec, tmp_path / "r", checkpoint_every=0), epoch=2)
    assert (stopped.status, stopped.error) == (STOPPED, "there is no checkpoint of it")


def test_a_finished_cell_leaves_no_checkpoint(mvtec, tmp_path):
    planned = job(mvtec, tmp_path / "r")
    lose(planned, epoch=3)
    seen = []
    assert execute_cell(planned.cell, planned.place, "run-2", seen.append).status == "ok"
    assert Storage(tmp_path / "r").names("checkpoints") == []
    trained = [progress for progress in seen if progress.phase == "train"]
    assert (trained[1].done, trained[1].epoch) == (2 * 8, 3)
    assert trained[-1].done == trained[-1].total == 4 * 8


def test_what_ran_out_of_time_goes_on_when_it_gets_more(mvtec, tmp_path):
    planned = job(mvtec, tmp_path / "r", epochs=400)
    assert execute_cell(planned.cell, planned.place, "run-1", print, timeout_s=1.0).status == "timeout"
    assert Storage(tmp_path / "r").names("checkpoints")


def test_without_checkpoints_none_is_written(mvtec, tmp_path):
    planned = job(mvtec, tmp_path / "r", checkpoint_every=0)
    lose(planned, epoch=3)
    assert Storage(tmp_path / "r").names("checkpoints") == []


def test_a_checkpoint_is_written_when_the_last_one_is_old_enough(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("kdbench.engine.checkpoint.time.monotonic", lambda: now[0])
    kept = Checkpoints(Storage(tmp_path), "abc", every_s=60, made_by=CODE)
    written = []
    monkeypatch.setattr(kept.storage, "write", lambda name, data: written.append(now[0]))
    for now[0] in (130.0, 159.0, 161.0, 200.0, 222.0):
        kept.after_epoch(lambda: {"history": {}})
    assert written == [161.0, 222.0]
    assert kept.train_s == 122.0


def test_a_disk_that_is_full_for_a_while_costs_no_training(mvtec, tmp_path, monkeypatch):
    planned = job(mvtec, tmp_path / "r")
    write, files, seen = Storage.write, [], []

    def full_once(self, name, data):
        if name.startswith("checkpoints/"):
            files.append(self.read(name) if self.exists(name) else b"")
            if len(files) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
        write(self, name, data)

    monkeypatch.setattr(Storage, "write", full_once)
    assert execute_cell(planned.cell, planned.place, "run-1", seen.append).status == "ok"
    first, before, after = files  # what was there when each epoch but the last was to be kept
    assert first == b""
    assert before == after != b""
    full = "no checkpoint: No space left on device"
    assert [p.problem for p in seen if p.phase == "train" and p.done in (12, 20, 28)] == ["", full, ""]
    console = Console(file=StringIO(), width=300)
    view = Bars(console, console)
    view.begin({planned.cell.id: 1.0})
    view.progress(next(p for p in seen if p.problem))
    assert full in view.console.file.getvalue()


def test_other_code_or_hardware_starts_anew(tmp_path):
    storage = Storage(tmp_path)
    Checkpoints(storage, "abc", every_s=1e-9, made_by=CODE).after_epoch(lambda: {"history": {"a": 1}})
    assert Checkpoints(storage, "abc", every_s=1, made_by=CODE).load() == {"history": {"a": 1}}
    assert Checkpoints(storage, "abc", every_s=1, made_by=CODE | {"num_threads": 2}).load() is None
    remove_checkpoint(storage, "abc")
    assert Checkpoints(storage, "abc", every_s=1, made_by=CODE).load() is None


def test_a_checkpoint_is_data_and_never_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("executed",))

    storage = Storage(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    torch.save({"made_by": CODE, "training": Evil()}, tmp_path / "checkpoints/abc.pt")
    with pytest.raises(ValueError, match=r"checkpoints/abc.pt is damaged. Delete it"):
        Checkpoints(storage, "abc", every_s=1, made_by=CODE).load()


def test_a_state_holds_the_random_numbers_too():
    """A method that draws numbers while it trains draws the same ones after it was taken up again."""
    generator = torch.Generator().manual_seed(3)

    class Drawing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def optimizer(self):
            return torch.optim.Adam([self.weight])

        def scheduler(self, optimizer):
            return torch.optim.lr_scheduler.StepLR(optimizer, 1)

    training = train.Training(Drawing(), "fp32", generator)
    state = training.state()
    drawn = torch.rand(3), torch.randperm(9, generator=generator)
    later = train.Training(Drawing(), "fp32", torch.Generator())
    later.resume(state)
    assert torch.equal(torch.rand(3), drawn[0])
    assert torch.equal(torch.randperm(9, generator=later.generator), drawn[1])
