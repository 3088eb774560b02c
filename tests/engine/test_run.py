"""A whole cell in this process: what a row holds, and that training sees no test image (promise 2)."""

import numpy as np
import pytest
import torch
from conftest import tiny_jobs as jobs
from conftest import write_category, write_image

from kdbench.engine.batches import split_heldout
from kdbench.engine.device import threads
from kdbench.engine.evaluate import score
from kdbench.engine.ready import ready_cell
from kdbench.engine.run import run_cell
from kdbench.grid.plan import Job
from kdbench.metrics.exact import METRICS
from kdbench.results.store import Results


def run(job: Job) -> list[dict]:
    return run_cell(job.cell, job.place, lambda progress: None).rows


def test_a_cell_has_the_threads_it_was_given_whoever_calls_it(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",), epochs=1, cpus_per_cell=1)
    with threads(2):
        assert {row["num_threads"] for row in run(job)} == {1}
        assert torch.get_num_threads() == 2


def test_the_same_cell_gives_the_same_numbers_and_another_seed_others(mvtec, tmp_path):
    first, again = (run(jobs(mvtec, tmp_path / "r", setting=("multiclass",))[0]) for _ in range(2))
    (other,) = [run(jobs(mvtec, tmp_path / "r", setting=("multiclass",), seeds=(1,))[0])]
    numbers = [
        [[row[m] for m in METRICS] + row["epoch_loss"] for row in rows] for rows in (first, again, other)
    ]
    assert numbers[0] == numbers[1] != numbers[2]


def test_what_is_trained_does_not_depend_on_the_test_images(tmp_path):
    """Promise 2: other test images, same training, same epoch kept."""
    for name in ("one", "other"):
        write_category(tmp_path / name, "bottle", seed=1)
    for i in range(4):
        write_image(tmp_path / "other/bottle/test/good" / f"{i:03}.png", 9000 + i)
        write_image(tmp_path / "other/bottle/test/broken" / f"{i:03}.png", 9100 + i)
    one, other = (run(jobs(tmp_path / name, tmp_path / "r", epochs=4)[0])[0] for name in ("one", "other"))
    for key in ("epoch_loss", "epoch_heldout", "best_epoch", "num_train", "num_heldout"):
        assert one[key] == other[key]
    assert one["image_auroc"] != other["image_auroc"]


def test_progress_covers_every_image_once(mvtec, tmp_path):
    seen = []
    (job,) = jobs(mvtec, tmp_path / "r", categories=("bottle",))
    run_cell(job.cell, job.place, seen.append)
    train = [p for p in seen if p.phase == "train"]
    assert train[-1].done == train[-1].total == 2 * 8
    evaluate = [p for p in seen if p.phase == "evaluate"]
    assert evaluate[-1].done == evaluate[-1].total == 8


def test_the_final_detector_scores_the_images_that_its_training_held_out(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", setting=("multiclass",), epochs=3)
    output = run_cell(job.cell, job.place, lambda progress: None)
    counts = [10] * len(job.cell.categories)
    _, aside = split_heldout(counts, 0.2, job.cell.seed)
    trained = [
        path for name in job.cell.categories for path in sorted((mvtec / name / "train/good").iterdir())
    ]
    assert [row["image"] for row in output.normals] == [
        trained[i].relative_to(mvtec).as_posix() for i in aside
    ]
    assert all(row["image"].startswith(f"{row['category']}/train/good/") for row in output.normals)
    assert {row["cell_id"] for row in output.normals} == {job.cell.id}
    ready = ready_cell(job.cell, job.place)
    ready.method.load_state_dict(output.detector, strict=False)
    pixels = np.concatenate([store.train for store in ready.stores])[aside]
    again = score(ready.method, ready.batches(pixels), lambda count: None).image_score
    assert [row["image_score"] for row in output.normals] == pytest.approx(again, rel=1e-5)


def test_a_method_that_holds_nothing_out_has_no_scores_of_normals(mvtec, tmp_path):
    (job,) = jobs(mvtec, tmp_path / "r", methods=("rd4ad",), categories=("bottle",), epochs=1)
    assert run_cell(job.cell, job.place, lambda progress: None).normals == []


def test_a_method_that_holds_nothing_out_scores_what_a_user_holds_out(mvtec, tmp_path):
    asked = {"methods": ("rd4ad",), "categories": ("bottle",), "epochs": 1, "hold_out": 0.2}
    (job,) = jobs(mvtec, tmp_path / "r", **asked)
    output = run_cell(job.cell, job.place, lambda progress: None)
    (row,) = output.rows
    assert (row["num_train"], row["num_heldout"], len(output.normals)) == (8, 2, 2)


@pytest.mark.slow
def test_real_bottles_are_learnt_from_a_real_teacher(shared, tmp_path):
    """Twelve epochs at 128 px: the real images, the real weights, the whole path."""
    weights = shared / "weights/resnet18_imagenet_layers1to3_bnfolded.pth"
    (job,) = jobs(
        shared / "data/mvtec_ad",
        tmp_path / "r",
        categories=("bottle",),
        backbone="resnet18.tv_in1k",
        weights=weights,
        epochs=12,
        set={"all.image_size": 128, "all.batch_size": 16},
    )
    (row,) = run(job)
    assert (row["num_train"] + row["num_heldout"], row["num_test"], row["num_defective"]) == (209, 83, 63)
    assert row["epoch_loss"][-1] < 0.5 * row["epoch_loss"][0]
    assert row["pixel_auroc"] > 0.9
    assert Results(tmp_path / "r").ends([job.cell.id]) == {}
