"""A threshold of image scores from normal images alone, and what is known of its false alarms."""

import numpy as np
from pydantic import BaseModel, ConfigDict

HELD_OUT, TRAINED = "held out", "trained on"
LEVEL = 0.95  # of the interval


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


def threshold_of(scores: np.ndarray, false_alarms: float, *, normals: str) -> Threshold:
    """The smallest score of n normal images above which a new one lies with at most this probability.

    Above the k-th smallest of n scores lies a share of Beta(n + 1 - k, k) of the distribution (Wilks 1941),
    whose mean is (n + 1 - k) / (n + 1). If n is too small for the rate, it is the largest score. Raises
    ValueError for no scores, for scores that are not finite and for a rate outside of 0 to 1.
    """
    from scipy.stats import beta

    if not 0 < false_alarms < 1:
        raise ValueError(f"a rate of false alarms of {false_alarms}: it is between 0 and 1")
    ordered = np.sort(np.asarray(scores, np.float64))
    count = len(ordered)
    if not count or not np.isfinite(ordered).all():
        raise ValueError(f"{count} scores of normal images, {np.isfinite(ordered).sum()} of them finite")
    # The small term keeps 0.95 * 20 from being 19.000000000000004.
    rank = min(count, int(np.ceil((1 - false_alarms) * (count + 1) - 1e-9)))
    above = beta(count + 1 - rank, rank)
    low, high = above.interval(LEVEL)
    return Threshold(
        value=float(ordered[rank - 1]),
        false_alarms=false_alarms,
        num_images=count,
        normals=normals,
        expected=float(above.mean()),
        low=float(low),
        high=float(high),
    )
