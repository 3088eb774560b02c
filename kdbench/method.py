"""The contract between a paper's file in `methods/` and the runner; functions that methods share."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache, wraps
from itertools import pairwise
from typing import Any, ClassVar, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from kdbench.backbone import FeaturePyramid
from kdbench.weights import EMBEDDED

# Their meaning is in FAMILIES of kdbench/registry.py.
Family = Literal["forward", "reverse", "both", "segmentation", "transformer"]
Fidelity = Literal["official recipe", "author's code, partly", "after the abstract"]

P = ParamSpec("P")
Pair = tuple[Tensor, list[Tensor]]  # normalised images [B,3,H,W] and the teacher's levels of them

T = TypeVar("T")


def added(
    default: T,
    *,
    ge: float | None = None,
    gt: float | None = None,
    lt: float | None = None,
) -> T:
    """A key of a Config that older versions lack; `default` is how they behaved.

    A written configuration leaves the key out while it has its default, so that cells keep their ids and old
    and new rows make the same entries.
    """
    return Field(default, ge=ge, gt=gt, lt=lt, exclude_if=lambda value: value == default)


# The demo profile runs anywhere in a minute: embedded teacher, small images, few epochs.
DEMO: dict[str, Any] = {"backbone": EMBEDDED, "image_size": 128, "batch_size": 8, "epochs": 6}


class Method(nn.Module):
    """A detector: a frozen teacher, something trained on normal images, and an anomaly map.

    `taught` is always the teacher's list of levels [B,C,h,w] for the same images; the runner computes it.
    Losses and maps are computed in float32 whatever the precision of the networks.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    family: ClassVar[Family]
    year: ClassVar[int]  # in which the paper appeared
    licence: ClassVar[str]  # of the authors' code, which no method file copies
    fidelity: ClassVar[Fidelity]
    departures: ClassVar[tuple[str, ...]] = ()  # where this file differs from the paper, in words
    # Needs beyond a usual teacher, in words; a method with needs runs only if --methods names it.
    needs: ClassVar[str] = ""
    # Changes of the configuration: for one model of all categories, in the demo profile (beside DEMO), and in
    # tests with the smallest network.
    multiclass: ClassVar[dict[str, Any]] = {}
    demo: ClassVar[dict[str, Any]] = {}
    tiny: ClassVar[dict[str, Any]] = {}
    # A config may decide these three, in `__init__`.
    scheduler_every: Literal["epoch", "step"] = "epoch"  # when the scheduler is stepped
    training_only: tuple[str, ...] = ()  # attributes that only the loss uses; not in a detector
    calibrates: bool = False  # whether `calibrate` needs images under every checkpoint rule
    # Optimizer steps until now and in the whole training; the runner sets both before every loss.
    step: int = 0
    num_steps: int = 1

    class Config(BaseModel):
        """The paper's numbers: frozen, validated; an unknown key is an error."""

        model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

        backbone: str = "resnet18.tv_in1k"
        levels: tuple[int, ...] = Field((1, 2, 3), min_length=1)
        image_size: int = Field(256, ge=32, le=2048)
        epochs: int = Field(100, ge=1)
        batch_size: int = Field(32, ge=1)
        # With "heldout" a share of the normal images is set aside and never trained on; with "last" none is.
        checkpoint: Literal["heldout", "last"] = "last"
        heldout_share: float = Field(0.2, gt=0, lt=1)
        # A share that neither training nor the checkpoint rule nor calibration sees; it gives thresholds.
        hold_out: float = added(0.0, ge=0, lt=1)
        precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"

        @field_validator("levels")
        @classmethod
        def _levels_ascend(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
            if any(b <= a for a, b in pairwise((0, *levels))):
                raise ValueError("levels are whole numbers from 1 on, each larger than the one before")
            return levels

        @model_validator(mode="after")
        def _keys_agree(self) -> "Method.Config":
            if wrong := [text for text, applies in self.conflicts().items() if applies]:
                raise ValueError("; ".join(wrong))
            return self

        def conflicts(self) -> dict[str, bool]:
            """Complaints about keys that exclude one another: the complaint -> whether it applies."""
            return {}

    def __init__(self, config: Any, teacher: FeaturePyramid) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher

    def prepare(self, normals: Iterable[Pair]) -> None:
        """Look at batches of all training images once, before training; keep results in buffers."""

    def calibrate(self, normals: Iterable[Pair]) -> None:
        """Look at batches of held-out normal images once, after training, if there are any.

        The networks are those of the kept epoch, in eval mode. Keep results in buffers: they are part of the
        detector.
        """

    def loss(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        """Scalar training loss of normalised images [B,3,H,W].

        A loss may run `self.teach` on a changed image, and may depend on `self.progress`. A method with
        several terms in its loss implements `terms` instead.
        """
        if type(self).terms is Method.terms:
            raise TypeError(f"{type(self).__name__} has no loss")
        return total(self.terms(images, taught))

    def terms(self, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
        """Name -> a summand of the loss with its weight: a scalar, or one value per level [L]."""
        return {"loss": self.loss(images, taught)}

    def observed(self) -> dict[str, Tensor]:
        """Further scalars of the last batch, by name; the runner keeps them beside the terms of its loss."""
        return {}

    def anomaly_map(self, images: Tensor, taught: list[Tensor]) -> Tensor:
        """[B,H,W] at the size of the images, float32, larger is more anomalous."""
        raise TypeError(f"{type(self).__name__} has no anomaly_map")

    def image_score(self, anomaly_map: Tensor) -> Tensor:
        """[B], larger is more anomalous; the maximum of the map unless a paper says otherwise."""
        return anomaly_map.flatten(1).amax(1)

    def optimizer(self) -> Optimizer:
        """The optimizer over everything that is trained."""
        raise TypeError(f"{type(self).__name__} has no optimizer")

    def scheduler(self, optimizer: Optimizer) -> LRScheduler | None:
        """The schedule of the learning rate, stepped by `scheduler_every`; None keeps it constant."""
        return None

    @property
    def progress(self) -> float:
        """The share of the training that is done, 0 to 1."""
        return self.step / self.num_steps

    @torch.no_grad()
    def teach(self, images: Tensor) -> list[Tensor]:
        """The teacher's levels of images that the loss has changed, computed now."""
        return self.teacher(images)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that are trained: everything outside the teacher."""
        return [p for name, p in self.named_parameters() if not name.startswith("teacher.")]

    def parameter_groups(self, rates: Mapping[str, float]) -> list[dict[str, Any]]:
        """The trained parameters for an optimizer: a group for each named part with its rate, then the rest.

        A part is an attribute, or one of an attribute: "encoder", "segmentation.head".
        """
        rest = {name: p for name, p in self.named_parameters() if not name.startswith("teacher.")}
        groups: list[dict[str, Any]] = []
        for part, rate in rates.items():
            inside = [name for name in rest if name.startswith(f"{part}.")]
            groups.append({"params": [rest.pop(name) for name in inside], "lr": rate})
        return [*groups, {"params": [*rest.values()]}]

    def train(self, mode: bool = True) -> "Method":
        """Train or eval mode for everything but the teacher, which stays in eval."""
        super().train(mode)
        self.teacher.eval()
        return self

    def detector_state(self) -> dict[str, Tensor]:
        """All tensors but the teacher's that scoring images needs, by name."""
        without = tuple(f"{name}." for name in ("teacher", *self.training_only))
        return {name: t for name, t in self.state_dict().items() if not name.startswith(without)}

    def load_detector(self, state: dict[str, Tensor]) -> None:
        """Load the tensors of `detector_state`; RuntimeError for a missing or unknown name."""
        result = self.load_state_dict(state, strict=False)
        missing = [name for name in result.missing_keys if name in self.detector_state()]
        if missing or result.unexpected_keys:
            raise RuntimeError(
                f"not a {self.name} detector: missing {missing}, unknown {result.unexpected_keys}"
            )

    @classmethod
    def holds_out(cls, config: Any) -> bool:
        """Whether this Config sets training images aside; without, one image can be trained on."""
        return config.checkpoint == "heldout" or cls.calibrates

    @classmethod
    def recipe(cls, profile: str, setting: str) -> dict[str, Any]:
        """The changes of a profile and a setting to the defaults of Config."""
        paper = cls.multiclass if setting == "multiclass" else {}
        return {**paper, **DEMO, **cls.demo} if profile == "demo" else dict(paper)


def total(terms: Mapping[str, Tensor]) -> Tensor:
    """The loss: the sum of all terms, scalars or [L]."""
    values = [*terms.values()]
    if len({value.shape for value in values}) > 1:
        values = [value.sum() for value in values]
    return torch.stack(values, -1).sum()


def _scalar(method: Method, loss: Tensor) -> Tensor:
    """The loss; ValueError for one per image, whose sum would train with a larger rate."""
    if loss.ndim:
        raise ValueError(
            f"{method.name}: the loss must be one number, this one has the shape {tuple(loss.shape)}"
        )
    return loss


def named_terms(method: Method, images: Tensor, taught: list[Tensor]) -> dict[str, Tensor]:
    """The terms of a loss; one term where a subclass has a `loss` of its own."""
    for kind in type(method).__mro__:
        if "loss" in vars(kind):
            return {"loss": _scalar(method, method.loss(images, taught))}
        if "terms" in vars(kind):
            break
    return method.terms(images, taught)


def top_mean(anomaly_map: Tensor, share: float) -> Tensor:
    """The mean of the largest `share` of each map [B,H,W], and of at least one value: [B]."""
    values = anomaly_map.flatten(1)
    return values.topk(max(1, int(share * values.shape[1])), dim=1).values.mean(1)


def ranked(maps: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The values of all maps below which these shares of the values lie: [len(shares)], no interpolation."""
    ordered = torch.cat([values.flatten() for values in maps]).sort().values
    return ordered[[round(share * (len(ordered) - 1)) for share in shares]]


def scale_gradient(x: Tensor, weight: Tensor) -> Tensor:
    """`x` unchanged; its gradient is multiplied by `weight` (broadcast), as hard mining needs."""
    return x * weight + (x * (1 - weight)).detach()


Compile = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]
_compile: ContextVar[Compile | None] = ContextVar("compile", default=None)


@contextmanager
def compiled_by(compile_: Compile | None) -> Iterator[None]:
    """A context in which `compile_` turns each compilable function into the one that is called."""
    token = _compile.set(compile_)
    try:
        yield
    finally:
        _compile.reset(token)


def compilable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Mark a function of tensors without parameters: the runner compiles it where that saves time.

    Most of a loss's time is reading and writing large maps, pass after pass; a compiler needs one pass. The
    values change in the last digits only. A compilable function does not call another one.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        compile_ = _compile.get()
        return (compile_(function) if compile_ else function)(*args, **kwargs)

    return call


def channel_statistics(levels: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation [C] of each channel over all images and places of levels [B,C,h,w]."""
    count, sums, squares = 0, torch.zeros(()), torch.zeros(())
    for level in levels:
        values = level.double().cpu()
        sums, squares = sums + values.sum((0, 2, 3)), squares + values.square().sum((0, 2, 3))
        count += level.numel() // level.shape[1]
    mean = sums / count
    return mean.float(), (squares / count - mean**2).clamp(min=1e-12).sqrt().float()


def full_precision(like: Tensor) -> torch.autocast:
    """A context without autocast on the device of `like`; autocast would round products of float32 maps."""
    return torch.autocast(like.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """The values in float32 at least: float64 stays, in which a test compares more digits."""
    return x if x.dtype == torch.float64 else x.float()


@compilable
def cosine_distance(taught: Tensor, learned: Tensor) -> Tensor:
    """1 - cosine of the channel vectors of two maps [B,C,h,w], as [B,h,w]; 0 to 2.

    Equals half the squared distance of the unit vectors. The eps keeps the gradient finite at a zero vector.
    """
    return 1 - nn.functional.cosine_similarity(wide(taught), wide(learned), dim=1, eps=1e-6)


def unit_vectors(features: Tensor) -> Tensor:
    """Every channel vector of [B,C,h,w] scaled to length 1; a zero vector stays zero."""
    return nn.functional.normalize(wide(features), dim=1, eps=1e-6)


def upsample(level_map: Tensor, size: int, *, align_corners: bool = False) -> Tensor:
    """[B,h,w] -> [B,size,size], bilinear."""
    if level_map.shape[1:] == (size, size):
        return level_map
    return nn.functional.interpolate(
        level_map[:, None], size=(size, size), mode="bilinear", align_corners=align_corners
    )[:, 0]


def fuse(level_maps: list[Tensor], size: int, *, grid: int = 0, product: bool = False) -> Tensor:
    """One map [B,size,size] from the maps [B,h,w] of all levels: sum or product at `grid` (0: at `size`)."""
    maps = torch.stack([upsample(level_map, grid or size) for level_map in level_maps])
    return upsample(maps.prod(0) if product else maps.sum(0), size)


def gaussian_blur(anomaly_map: Tensor, sigma: float, radius: int | None = None) -> Tensor:
    """Smooth maps [B,H,W] like scipy.ndimage.gaussian_filter with mirrored borders; sigma 0 changes nothing.

    `radius` is the kernel's, in pixels; 4 sigma if it is not given.
    """
    if sigma == 0:
        return anomaly_map
    radius = int(4 * sigma + 0.5) if radius is None else radius
    smooth = anomaly_map.float()
    for _ in range(2):  # rows, then columns
        matrix = torch.from_numpy(blur_matrix(smooth.shape[2], sigma, radius)).to(smooth.device)
        with full_precision(smooth):
            smooth = (smooth.contiguous() @ matrix).transpose(1, 2)
    return smooth


@lru_cache(maxsize=16)  # a detector needs the same matrix again and again
def blur_matrix(size: int, sigma: float, radius: int) -> np.ndarray:
    """The Gaussian along one axis with mirrored borders: smooth = values @ matrix, float32 [size,size].

    A value is also seen through the borders, as in `gaussian_filter(mode="reflect")` of SciPy.
    """
    distance = np.arange(-radius, radius + 1)
    kernel = np.exp(-0.5 * (distance / sigma) ** 2)
    seen = (np.arange(size)[:, None] + distance) % (2 * size)  # [output, kernel]
    matrix = np.zeros((size, size))
    inputs, outputs = np.where(seen < size, seen, 2 * size - 1 - seen), np.arange(size)[:, None]
    np.add.at(matrix, (inputs, outputs), kernel / kernel.sum())
    return matrix.astype(np.float32)


@compilable
def flat_cosine_distance(taught: Tensor, learned: Tensor) -> Tensor:
    """1 - cosine of two whole maps [B,C,h,w], as [B]; 0 to 2."""
    # Channels last, as convolutions leave them: flattening in the other order would copy the maps.
    one, other = (wide(x.permute(0, 2, 3, 1)).flatten(1) for x in (taught, learned))
    return 1 - nn.functional.cosine_similarity(one, other, dim=1, eps=1e-6)


@compilable
def squared_distance(taught: Tensor, learned: Tensor) -> Tensor:
    """The squared distance of the unit channel vectors of two maps [B,C,h,w], as [B,h,w]; 0 to 4.

    `2 - 2 cosine` would be quicker, but it loses digits of small distances, and a product of maps needs them.
    """
    return (unit_vectors(taught) - unit_vectors(learned)).square().sum(1)


@compilable
def divergence(taught: Tensor, learned: Tensor, temperature: float, *, of_places: bool = False) -> Tensor:
    """KL(teacher || student) of softmaxes of two maps [B,C,h,w].

    The softmax of each channel runs over the positions: [B,C]. With `of_places` that of each position runs
    over the channels: [B,hw].
    """
    over = 2 if of_places else 1
    places = [wide(x.permute(0, 2, 3, 1)).flatten(1, 2) for x in (taught, learned)]  # [B,hw,C]
    p, q = (nn.functional.log_softmax(x / temperature, over) for x in places)
    return (p.exp() * (p - q)).sum(over)
