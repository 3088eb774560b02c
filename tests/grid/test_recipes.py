"""Recipes: each is a request that can be planned, and its published numbers are those of the reports."""

import csv
import json
from pathlib import Path

import pytest
from conftest import tiny_request

from kdbench.errors import RequestError
from kdbench.grid.costs import num_images
from kdbench.grid.gpu_hours import SPEED, gpu_hours, operations
from kdbench.grid.plan import plan
from kdbench.grid.recipes import PUBLISHED, grid_file, published, recipe_names, says
from kdbench.grid.request import Request, read_request
from kdbench.registry import get_dataset, method_names

ROOT = Path(__file__).parents[2]
NONE_KNOWN = {"paper/snl-multiclass", "paper/snl-multiclass-visa", "paper/dskd-oneclass"}
KNOWN = ("image_auroc", "pixel_auroc")


def request_of(name: str) -> Request:
    return read_request(Path(name), {})


def test_every_method_has_a_recipe():
    assert {method for name in recipe_names() for method in request_of(name).methods} == set(method_names())


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_says_what_it_is_and_has_published_numbers(name):
    request = request_of(name)
    (method,), (dataset,), (setting,) = request.methods, request.dataset, request.setting
    assert name.startswith(f"paper/{method}-{setting}")
    assert name.endswith("-visa") == (dataset == "visa")
    assert get_dataset(dataset).profile == "paper"
    assert request.precision == "fp32"
    assert says(name)[0].isupper()
    numbers = published(method, dataset, setting)
    assert (name in NONE_KNOWN) == (not numbers)
    assert all(0 < one.value < 1 for one in numbers)
    if numbers:
        assert any(one.metric in KNOWN for one in numbers)
    assert f"`{name}`" in (ROOT / "docs/recipes.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_lacks_nothing_but_images_and_weights(name, tmp_path):
    request = request_of(name).model_copy(update={"root": tmp_path, "weights": tmp_path / "none.pth"})
    with pytest.raises(RequestError) as raised:
        plan(request)
    (dataset,) = request.dataset
    lacks = [text for text in raised.value.complaints if "none.pth" not in text]
    assert len(lacks) == 1
    assert lacks[0].startswith(f"{dataset}: {tmp_path}")


def test_the_published_numbers_are_those_of_the_file():
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["category"] == "mean"]
    shown = {
        (one.metric, one.value, one.source)
        for method, dataset, setting in {(one["method"], one["dataset"], one["setting"]) for one in lines}
        for one in published(method, dataset, setting)
    }
    assert shown == {(one["metric"], float(one["value"]), one["source"]) for one in lines}
    assert published("rd4ad", "mvtec_ad", "oneclass")[0].value == 0.985


def test_a_wrong_name_is_told_with_the_nearest(kdbench):
    code, text = kdbench("run", "--config", "paper/dcam-multclass")
    assert code == 2
    errors = [line for line in text.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert "there is no file paper/dcam-multclass, and no recipe 'paper/dcam-multclass'" in text
    assert "Did you mean 'paper/dcam-multiclass'?" in " ".join(text.split())


def test_a_file_is_a_file_whatever_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "paper").mkdir()
    own = tmp_path / "paper/dcam-multiclass"
    own.write_text("seeds = [7]")
    assert grid_file(Path("paper/dcam-multiclass")) == Path("paper/dcam-multiclass")
    assert request_of("paper/dcam-multiclass").seeds == (7,)
    assert grid_file(Path("gone.toml")) == Path("gone.toml")  # reading it says that it is not there


def test_a_recipe_runs_on_a_folder_of_images_with_options_over_it(kdbench, mvtec, tmp_path):
    asked = ("--root", mvtec, "--results", tmp_path / "r", "--backbone", "tiny", "--categories", "bottle")
    code, text = kdbench("run", "--config", "paper/stfpm-oneclass", *asked, "--epochs", "1", "--dry-run")
    assert code == 0, text
    assert "1 of 1 cell to run" in text
    assert "on a GPU about" in text
    assert "No GPU has confirmed this estimate" in " ".join(text.split())


def test_operations_are_those_of_the_networks(mvtec, tmp_path):
    """Two equal networks: 2 passes for a map; 4 for a step, but without the gradient of the image."""
    found = plan(tiny_request(mvtec, tmp_path, categories=("bottle",), precision="fp32"))
    (job,) = found.jobs
    train, test = operations(job)
    assert test > 0
    assert 1.5 < train / test <= 2
    config, (num_train, num_test) = json.loads(job.cell.config), num_images(job.cell, found.data)
    assert min(num_train, num_test) > 0
    expected = (train * num_train * config["epochs"] + test * num_test) / SPEED["fp32"] / 3600
    assert gpu_hours([job], found.data) == pytest.approx(expected)


def test_list_recipes_shows_every_name_and_a_number(kdbench):
    code, text = kdbench("list", "recipes")
    assert code == 0
    assert all(name in text for name in recipe_names())
    assert "98.50" in text
    assert text.splitlines()[-1].startswith("next, how long one takes: kdbench run --config RECIPE")
