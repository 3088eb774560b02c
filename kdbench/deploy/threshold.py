"""The threshold that an exported detector has: of image scores, from normal images alone."""

import numpy as np
from pydantic import BaseModel, ConfigDict

HELD_OUT, TRAINED = "held out", "trained on"


class Threshold(BaseModel):
    """An image is reported as anomalous if its score is above `value`.

    `expected`, `low` and `high` are the mean and the 95 % interval of the share of new normal images that
    will be reported, if the normal images are a random sample: this holds for every distribution of scores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    value: float
    false_alarms: float  # the share that was asked for
    num_images: int
    normals: str  # "held out" of the training; "trained on": their scores are too low, the rate is a bound
    expected: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """What a person should know of it."""
        rate = (
            f"{self.expected:.1%} of new normal images expected above it ({self.low:.1%} to {self.high:.1%})"
        )
        text = f"threshold {self.value:.6g} from {self.num_images} normal images, {self.normals}: {rate}"
        if self.normals == TRAINED:
            text += ". The detector was trained on these images, so that new ones score higher: expect more"
        if self.expected > self.false_alarms:
            needed = int(np.ceil(1 / self.false_alarms)) - 1
            text += f". Too few images for {self.false_alarms:.1%}: it takes {needed}"
        return text
