"""Evaluation presets: the conventions under which metrics are computed, each with a name of its own."""

from dataclasses import dataclass
from typing import Literal

from kdbench.metrics.exact import METRIC_VERSION

MaskRule = Literal["nearest", "two-tap bilinear > 0", "bilinear > 0.5"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Size and rules of one convention; every field is a column of every row."""

    evaluation_size: int  # maps (bilinear) and masks are brought to this square size; 0: to each image's own
    mask_rule: MaskRule  # how a mask, thresholded at its original size, is resized
    sigma: float | None = None  # the smoothing that a method must have under it; None: the method's own
    pro: Literal["", "pro_stfpm_legacy", "pro_rd4ad_legacy"] = ""  # its own PRO, in a column of its own
    # How often numbers of this preset alone have changed: then only its cells get new ids.
    revision: int = 0


PRESETS = {
    "exact": Preset(evaluation_size=256, mask_rule="nearest"),
    "mvtec_original": Preset(evaluation_size=0, mask_rule="nearest"),
    "ader": Preset(evaluation_size=256, mask_rule="bilinear > 0.5"),
    "stfpm_legacy": Preset(
        evaluation_size=256,
        mask_rule="two-tap bilinear > 0",
        sigma=0.0,
        pro="pro_stfpm_legacy",
        revision=1,  # 1: the thresholds go down from the maximum without the minimum, as in the official code
    ),
    "rd4ad_legacy": Preset(
        evaluation_size=256, mask_rule="bilinear > 0.5", sigma=4.0, pro="pro_rd4ad_legacy"
    ),
}


def metric_version(preset: str) -> int:
    """The version of the numbers of a preset's cells: that of all metrics plus the preset's own revision.

    It is part of a cell's id. Neither summand ever falls, so that a version never comes twice.
    """
    return METRIC_VERSION + PRESETS[preset].revision
