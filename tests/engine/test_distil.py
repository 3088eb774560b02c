"""A teacher for EfficientAD: what it learns, that it resumes bit-equal, and that EfficientAD takes it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_image
from safetensors import safe_open
from torch import Tensor

import kdbench
from kdbench.backbone import build_pdn, teacher
from kdbench.data.photographs import Photographs, find_photographs
from kdbench.engine import distil as engine
from kdbench.engine.distil import Distillation, distil, joined
from kdbench.engine.recipe import Recipe
from kdbench.errors import CellStopped, DataError, RequestError
from kdbench.files import file_sha256
from kdbench.weights import DISTILLED, find_weights

CPU = torch.device("cpu")
SMALL = Recipe(teacher="tiny", backbone="tiny_pdn", steps=6, batch_size=3, image_size=32)


@pytest.fixture
def photographs(tmp_path: Path) -> Photographs:
    for i in range(7):
        write_image(tmp_path / f"photographs/{i % 2}/{i}.png", seed=i)
    (tmp_path / "photographs/licence.txt").write_text("free")
    return find_photographs(tmp_path / "photographs")


def make(photographs: Photographs, out: Path, recipe: Recipe = SMALL, stop_after: int = 0) -> list[str]:
    """Make a teacher, or stop after some steps; returns what the user is told."""
    notes = list[str]()

    def on_step(step: int, loss: float) -> None:
        if step == stop_after:
            raise CellStopped

    weights = find_weights(recipe.teacher)
    distil(recipe, photographs, weights, out, device=CPU, on_step=on_step, note=notes.append)
    return notes


def test_a_distillation_that_was_stopped_goes_on_bit_for_bit(photographs, tmp_path):
    assert make(photographs, tmp_path / "whole.safetensors") == []
    with pytest.raises(CellStopped):
        make(photographs, tmp_path / "parts.safetensors", stop_after=4)
    assert not (tmp_path / "parts.safetensors").exists()
    assert make(photographs, tmp_path / "parts.safetensors") == ["it goes on after step 4"]
    assert (tmp_path / "parts.safetensors").read_bytes() == (tmp_path / "whole.safetensors").read_bytes()
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.mark.parametrize("changes", [{"seed": 1}, {"batch_size": 2}, {"steps": 7}])
def test_another_recipe_starts_anew_and_says_so(photographs, tmp_path, changes):
    with pytest.raises(CellStopped):
        make(photographs, tmp_path / "t.safetensors", stop_after=2)
    other = Recipe(**(vars(SMALL) | changes))
    (note,) = make(photographs, tmp_path / "t.safetensors", other)
    assert note.endswith("is of another recipe, code or machine: it starts anew")
    make(photographs, tmp_path / "fresh.safetensors", other)
    assert (tmp_path / "t.safetensors").read_bytes() == (tmp_path / "fresh.safetensors").read_bytes()


def test_efficientad_takes_the_file_and_a_row_says_what_it_is(photographs, tmp_path):
    recipe = Recipe(teacher="tiny", steps=1, batch_size=2, image_size=32)
    file = tmp_path / "pdn_small.safetensors"
    make(photographs, file, recipe)
    weights = find_weights("pdn_small.distilled", file)
    assert weights.source == f"file {file.name}, distilled from tiny in 1 steps of 2 images"
    assert weights.sha256 == file_sha256(file)
    with safe_open(file, "pt") as opened:
        assert f'"images":"{photographs.fingerprint}"' in opened.metadata()[DISTILLED]
        state = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, no dictionary
    loaded = teacher("pdn_small.distilled", (1,), weights).body.network.state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_the_loss_falls(photographs, tmp_path):
    recipe, losses = Recipe(**(vars(SMALL) | {"steps": 60, "lr": 3e-3})), []
    training = Distillation(recipe, photographs, find_weights("tiny"), CPU)
    training.look_at_channels()
    training.train(lambda step, loss: losses.append(loss))
    assert np.mean(losses[-5:]) < 0.8 * losses[0]


def test_channels_of_the_target_have_mean_0_and_deviation_1(photographs):
    recipe = Recipe(**(vars(SMALL) | {"grey": 0.0}))
    training = Distillation(recipe, photographs, find_weights("tiny"), CPU)
    training.look_at_channels()
    targets = torch.cat([training._joined(large) for large, _ in training._batches(range(0, 7, 3), 7)])
    scaled = (targets - training.mean) / training.std
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(16), atol=1e-4, rtol=0)
    torch.testing.assert_close(scaled.std((0, 2, 3), correction=0), torch.ones(16), rtol=1e-3, atol=0)


def by_hand(level: Tensor, values: int, places: int) -> np.ndarray:
    """PatchCore's order of work, place by place: cut patches, resize each plane of them, then average."""
    channels, height, width = level.shape
    padded = np.pad(level.numpy(), ((0, 0), (1, 1), (1, 1)))
    planes = np.stack(
        [
            padded[c, y : y + height, x : x + width]
            for c in range(channels)
            for y in range(3)
            for x in range(3)
        ]
    )
    resized = torch.nn.functional.interpolate(
        torch.from_numpy(planes)[None], (places, places), mode="bilinear", align_corners=False
    )[0].numpy()
    return bins(resized, values)


def bins(values: np.ndarray, count: int) -> np.ndarray:
    """The means of `count` bins of the first axis, as adaptive pooling has them."""
    edges = [(i * len(values) // count, -(-(i + 1) * len(values) // count)) for i in range(count)]
    return np.stack([values[a:b].mean(0) for a, b in edges])


def test_levels_are_joined_as_patchcore_joins_them(monkeypatch):
    monkeypatch.setattr(engine, "VALUES", 10)
    generator = torch.Generator().manual_seed(0)
    fine, coarse = (torch.randn(2, c, n, n, generator=generator) for c, n in ((3, 6), (5, 3)))
    found = joined([fine, coarse], 4, 6)
    for one, level2, level3 in zip(found, fine, coarse, strict=True):
        both = np.concatenate([by_hand(level2, 10, 6), by_hand(level3, 10, 6)])
        np.testing.assert_allclose(one.numpy(), bins(both, 4), atol=1e-6)


@pytest.mark.parametrize("backbone", ["pdn_small.distilled", "pdn_medium.distilled"])
def test_a_padded_network_has_64_places_and_the_tensors_of_the_other(backbone):
    with torch.device("meta"):
        padded, plain = build_pdn(backbone, 384, padded=True), build_pdn(backbone, 384)
        assert padded(torch.empty(1, 3, 256, 256)).shape == (1, 384, 64, 64)
    shapes = [{name: t.shape for name, t in network.state_dict().items()} for network in (padded, plain)]
    assert shapes[0] == shapes[1]


def test_every_image_has_its_turn_and_a_tenth_of_them_is_grey(photographs, monkeypatch):
    read = list[tuple[int, bool]]()

    def note(self, index, sizes, *, grey):
        read.append((index, grey))
        return [np.zeros((size, size, 3), np.uint8) for size in sizes]

    monkeypatch.setattr(Photographs, "read", note)
    training = Distillation(SMALL, photographs, find_weights("tiny"), CPU)
    for number in range(700):
        training._read(number)
    turns = [[index for index, _ in read[first : first + 7]] for first in range(0, 700, 7)]
    assert all(sorted(turn) == list(range(7)) for turn in turns)
    assert len({tuple(turn) for turn in turns}) > 90
    assert np.mean([grey for _, grey in read]) == pytest.approx(0.1, abs=0.03)


def test_grey_images_have_one_value_in_all_channels(photographs):
    colour, grey = (photographs.read(0, (32, 16), grey=grey) for grey in (False, True))
    assert [pixels.shape for pixels in grey] == [(32, 32, 3), (16, 16, 3)]
    assert (grey[0].std(-1) == 0).all()
    assert (colour[0].std(-1) > 0).any()


def test_a_teacher_with_other_strides_is_refused(photographs, tmp_path):
    with pytest.raises(RequestError, match=r"levels 2 and 3 have strides \[14, 14\], not \[8, 16\]"):
        make(photographs, tmp_path / "t.safetensors", Recipe(teacher="tiny_vit"))


def test_an_image_that_cannot_be_read_is_named(photographs, tmp_path):
    (tmp_path / "photographs/0/0.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"0\.png cannot be read as an image"):
        make(photographs, tmp_path / "t.safetensors")


def test_wrong_requests_are_refused_with_all_complaints(kdbench, photographs, tmp_path):
    code, text = kdbench("distil-teacher", "--images", tmp_path, "--out", "t.pth", "--teacher", "tiny")
    assert (code, text) == (2, "error: --out t.pth is no name: it ends with .safetensors\n")
    words = ("--images", tmp_path / "none", "--out", tmp_path / "t.safetensors", "--teacher", "tiny")
    code, text = kdbench("distil-teacher", *words)
    assert code == 2
    assert "there is no image below" in text
    code, text = kdbench("distil-teacher", *words, "--size", "large", "--steps", "0")
    assert (code, text.splitlines()) == (
        2,
        ["error: no size 'large'. Sizes: small, medium", "error: steps=0: at least 1"],
    )


def test_python_makes_the_teacher_that_the_command_makes(kdbench, photographs, tmp_path, monkeypatch):
    monkeypatch.setattr("kdbench.engine.recipe.Recipe", lambda **asked: Recipe(image_size=32, **asked))
    monkeypatch.chdir(tmp_path)
    words = ("--teacher", "tiny", "--steps", 1, "--batch-size", 2)
    code, text = kdbench("distil-teacher", "--images", "photographs", "--out", "a.safetensors", *words)
    assert code == 0
    assert "7 images below photographs" in text
    assert "--methods efficientad --backbone pdn_small.distilled --weights a.safetensors" in text
    file = api_call("photographs", "b.safetensors")
    assert file.read_bytes() == Path("a.safetensors").read_bytes()
    with pytest.raises(RequestError, match="exists already"):
        api_call("photographs", "b.safetensors")


def api_call(images: str, out: str) -> Path:
    return kdbench.distil_teacher(images, out, teacher="tiny", steps=1, batch_size=2, progress=False)
