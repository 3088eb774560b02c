"""The threshold of an exported detector for image scores; only normal images decide it."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

Source = Literal["unseen images", "held-out images", "training images"]
UNSEEN: Source = "unseen images"  # only the threshold has seen them
HELD_OUT: Source = "held-out images"  # not trained on; they chose the epoch, or calibrated the maps
TRAINED: Source = "training images"


class Threshold(BaseModel):
    """An image is reported as anomalous if its score is above `value`.

    `expected`, `low` and `high` are the mean and the 95 % interval of the share of new normal images that
    will be reported, if the normal images are a random sample: this holds for every distribution of scores.
    They are None if the threshold is from training images: the detector knows those, so nobody can tell.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    false_alarms: float  # the share that was asked for
    num_images: int
    threshold_from: Source
    expected: float | None
    low: float | None
    high: float | None

    @property
    def words(self) -> str:
        """The threshold in words, with its false alarms."""
        text = f"threshold {self.value:.6g} from {self.num_images} {_OF[self.threshold_from]}"
        if self.expected is None:
            return (
                f"{text}. New normal images score higher: expect more than {self.false_alarms:.1%} of them "
                "above it; how many is unknown. kdbench run --hold-out 0.1 keeps images for thresholds"
            )
        rate = f"{self.expected:.1%} of new normal images expected above it"
        text += f": {rate} ({self.low:.1%} to {self.high:.1%})"
        if self.threshold_from == HELD_OUT:
            text += ", and somewhat more, for these images chose the epoch or calibrated the maps"
        if self.expected > self.false_alarms:
            needed = int(np.ceil(1 / self.false_alarms)) - 1
            text += f". Too few images for {self.false_alarms:.1%}: it takes {needed}"
        return text


_OF: dict[Source, str] = {
    UNSEEN: "normal images that the training never saw",
    HELD_OUT: "held-out normal images",
    TRAINED: "training images, which the detector has learnt",
}
