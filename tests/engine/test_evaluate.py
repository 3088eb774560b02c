"""Maps and scores of methods that break their contract are errors, and no numbers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import smallest

from kdbench.engine.batches import batches_of
from kdbench.engine.evaluate import at_size, check_alone, score
from kdbench.methods.stfpm import STFPM
from kdbench.metrics.exact import label_regions, pixel_curve
from kdbench.registry import method_names


class ScaledByBatch(STFPM):
    """Its maps reach from 0 to 1 in every batch: normal images among defective ones get lower scores."""

    def anomaly_map(self, images, taught):
        maps = super().anomaly_map(images, taught)
        return (maps - maps.min()) / (maps.max() - maps.min())


class RankedInBatch(STFPM):
    def image_score(self, anomaly_map):
        return anomaly_map.amax((1, 2)).argsort().argsort().float()


class OneScore(STFPM):
    def image_score(self, anomaly_map):
        return anomaly_map.amax()


class Columns(STFPM):
    def image_score(self, anomaly_map):
        return anomaly_map.amax((1, 2))[:, None]


def batches(method):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    pixels[:3] //= 8  # the normal ones are darker
    return batches_of(method, pixels)


@pytest.mark.parametrize(("kind", "what"), [(ScaledByBatch, "map"), (RankedInBatch, "score")])
def test_what_depends_on_the_other_images_of_a_batch_is_an_error(kind, what):
    method = smallest(kind, batch_size=4)
    score(method, batches(method), lambda count: None)
    with pytest.raises(
        ValueError, match=f"^stfpm: the {what} of an image differs by [0-9.]+ where other images"
    ):
        check_alone(method, batches(method))


def test_an_image_with_the_extremes_of_its_batch_does_not_hide_that_the_others_depend_on_it():
    """Alone it is scaled as in the batch."""
    method, pixels = smallest(ScaledByBatch, batch_size=4), np.full((6, 64, 64, 3), 90, np.uint8)
    pixels[0] = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    pixels[1:] += np.arange(5, dtype=np.uint8)[:, None, None, None]
    with pytest.raises(ValueError, match=r"^stfpm: the map of an image differs by"):
        check_alone(method, batches_of(method, pixels))


@pytest.mark.parametrize("name", method_names())
def test_the_maps_of_our_methods_do_not(name):
    method = smallest(name, batch_size=4)
    check_alone(method, batches(method))


def test_a_map_without_any_spread_is_no_error():
    method = smallest(STFPM, batch_size=4)
    method.anomaly_map = lambda images, taught: images.new_full((len(images), 64, 64), 0.5)
    check_alone(method, batches(method))


@pytest.mark.parametrize(("kind", "shape"), [(OneScore, r"\(\)"), (Columns, r"\(4, 1\)")])
def test_a_wrong_number_of_scores_is_named(kind, shape):
    method = smallest(kind, batch_size=4)
    said = f"^stfpm: image scores must be one number for each of 4 maps, these have the shape {shape}$"
    with pytest.raises(ValueError, match=said):
        score(method, batches(method), lambda count: None)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_two_resizes_of_a_map_move_pro_by_no_more_than_the_page_on_presets_says(side):
    """A method enlarges its features to its input, a preset enlarges that map to the size of the truth."""
    rng, shape, maps = np.random.default_rng(side), (400, 640), {"once": [], "twice": []}
    masks = np.zeros((8, *shape), bool)
    for index, mask in enumerate(masks):
        values = torch.tensor(rng.gamma(2, 1, (side, side)), dtype=torch.float32)
        if index % 2:
            top, left = rng.integers(300), rng.integers(500)
            mask[top : top + rng.integers(20, 100), left : left + rng.integers(30, 140)] = True
            seen = torch.from_numpy(mask)[None, None].float()
            values += 6 * F.interpolate(seen, size=(side, side), mode="area")[0, 0]
        of_method = at_size(values.numpy(), (256, 256))
        maps["once"].append(at_size(values.numpy(), shape))
        maps["twice"].append(at_size(of_method, shape))
    regions = label_regions(masks)
    once, twice = (pixel_curve(np.stack(own), regions).area_under_pro(0.3) for own in maps.values())
    assert 0 < abs(once - twice) < 0.002
