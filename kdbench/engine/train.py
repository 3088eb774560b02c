"""The training loop, the same for every method: cached teacher, held-out selection, no test images."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.optim import Optimizer

from kdbench.backbone import FeaturePyramid, normalisation
from kdbench.engine.features import Features, Shared
from kdbench.method import Method

# Share of the free memory of the device that cached teacher features may take.
CACHE_SHARE = 0.4

EpochEnd = Callable[["Epoch"], None]
StepEnd = Callable[[int], None]  # told how many images were just trained on
Checkpoint = Callable[[Callable[[], dict[str, Any]]], None]


class TrainingDiverged(RuntimeError):
    """The loss is not a number; nothing that follows could be trusted."""


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave."""

    number: int
    loss: float
    heldout: float | None
    images_per_s: float


@dataclass(kw_only=True)
class History:
    """What a training gave: one entry per epoch, and which epoch was kept."""

    epochs: list[Epoch] = field(default_factory=list)
    best_epoch: int = 0
    num_steps: int = 0


class Batches:
    """Normalised images and the teacher's levels for them; features are constants, so they are computed once.

    `pixels` is uint8 [N,S,S,3]. The features are kept on the device if they fit into a share of its free
    memory (`cache` is "device"), else in files that all processes share, if `shared` says where they belong
    and the disk has room ("disk"), else computed anew for every batch ("recomputed"): equal up to rounding.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        teacher: FeaturePyramid,
        backbone: str,
        *,
        device: torch.device,
        precision: str,
        batch_size: int,
        cached: bool = True,
        shared: Shared | None = None,
    ) -> None:
        writable = pixels if pixels.flags.writeable else pixels.copy()  # torch shares memory only with such
        self.pixels = torch.from_numpy(writable).to(device)
        self.teacher, self.precision, self.batch_size = teacher, precision, batch_size
        mean, std = normalisation(backbone)
        self.mean = torch.tensor(mean, device=device)[:, None, None] * 255
        self.std = torch.tensor(std, device=device)[:, None, None] * 255
        self.levels: list[Tensor] | None = None
        self.features: Features | None = None
        if not cached or not len(pixels):
            return
        one = self._bytes_per_image()
        if len(pixels) * one <= CACHE_SHARE * _own_share(device) * free_memory(device):
            self.levels = self._teach_all()
        elif shared is not None and shared.fits(one):
            self.features = shared.open(self._teach_pixels, batch_size)

    @property
    def autocast(self) -> AbstractContextManager:
        """The context in which networks run; a new one each time, since torch's may not be entered twice."""
        return autocast_for(self.precision, self.pixels.device)

    @property
    def cache(self) -> str:
        if self.features is not None:
            return "disk"
        return "recomputed" if self.levels is None else "device"

    def __len__(self) -> int:
        return len(self.pixels)

    def in_order(self) -> Iterator[Tensor]:
        """Indices of consecutive batches."""
        yield from torch.arange(len(self.pixels), device=self.pixels.device).split(self.batch_size)

    def shuffled(self, generator: torch.Generator) -> Iterator[Tensor]:
        """Indices of random batches; the last may be smaller."""
        order = torch.randperm(len(self.pixels), generator=generator).to(self.pixels.device)
        yield from order.split(self.batch_size)

    @torch.no_grad()
    def pairs(self) -> Iterator[tuple[Tensor, list[Tensor]]]:
        """Normalised images and the teacher's levels of them, batch after batch in order."""
        for index in self.in_order():
            images = self.images(index)
            yield images, self.taught(index, images)

    def images(self, index: Tensor) -> Tensor:
        """Normalised images [B,3,S,S] in channels-last order."""
        return self._normalised(self.pixels[index])

    def taught(self, index: Tensor, images: Tensor) -> list[Tensor]:
        """The teacher's levels for these images."""
        if self.features is not None:
            return self.features.take(index)
        return self._teach(images) if self.levels is None else [level[index] for level in self.levels]

    def _normalised(self, pixels: Tensor) -> Tensor:
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    @torch.no_grad()
    def _teach(self, images: Tensor) -> list[Tensor]:
        with self.autocast:
            return self.teacher(images)

    def _teach_all(self) -> list[Tensor]:
        """The levels [N,C,h,w] of all images, written in place: joining batches would need them twice."""
        levels: list[Tensor] = []
        for first, index in zip(range(0, len(self), self.batch_size), self.in_order(), strict=True):
            found = self._teach(self.images(index))
            if not levels:
                levels = [
                    torch.empty(
                        (len(self), *level.shape[1:]),
                        dtype=level.dtype,
                        device=level.device,
                        memory_format=torch.channels_last,
                    )
                    for level in found
                ]
            for level, part in zip(levels, found, strict=True):
                level[first : first + len(part)] = part
        return levels

    def _teach_pixels(self, pixels: np.ndarray) -> list[Tensor]:
        return self._teach(self._normalised(torch.from_numpy(pixels.copy()).to(self.pixels.device)))

    def _bytes_per_image(self) -> int:
        one = self._teach(self.images(torch.zeros(1, dtype=torch.long, device=self.pixels.device)))
        return sum(level.nbytes for level in one)


class Training:
    """All that changes while a method is trained, so that it can be put down and taken up again."""

    def __init__(self, method: Method, precision: str, generator: torch.Generator) -> None:
        self.method, self.generator = method, generator
        self.optimizer = fused(method.optimizer(), _device_of(method))
        self.scheduler = method.scheduler(self.optimizer)
        # fp16 gradients underflow without scaling; for the other precisions the scaler is transparent.
        self.scaler = torch.amp.GradScaler(_device_of(method).type, enabled=precision == "fp16")
        self.history = History()
        self.best, self.kept = float("inf"), dict[str, Tensor]()

    def state(self) -> dict[str, Any]:
        """Tensors and plain values only, so that it is read without running code (`weights_only`)."""
        device = _device_of(self.method)
        return {
            "networks": {n: t for n, t in self.method.state_dict().items() if not n.startswith("teacher.")},
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict() if self.scheduler else {},
            "scaler": self.scaler.state_dict(),
            "shuffling": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            "history": asdict(self.history),
            "best": self.best,
            "kept": self.kept,
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken."""
        self.method.load_state_dict(state["networks"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.scheduler:
            self.scheduler.load_state_dict(state["scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        self.generator.set_state(state["shuffling"])
        torch.set_rng_state(state["random"])
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"], _device_of(self.method))
        epochs = [Epoch(**epoch) for epoch in state["history"].pop("epochs")]
        self.history = History(epochs=epochs, **state["history"])
        self.best, self.kept = state["best"], state["kept"]

    def epoch(self, train: Batches, heldout: Batches | None, on_step: StepEnd) -> Epoch:
        """Train on every image once and look at the held-out ones; TrainingDiverged if a value is not finite.

        The epoch with the lowest mean anomaly map on held-out images is remembered for `finish`.
        """
        number, started = len(self.history.epochs) + 1, perf_counter()
        loss = _finite(self._train(train, on_step), "loss", number)
        speed = len(train) / (perf_counter() - started)
        mean_map = _finite(heldout_mean(self.method, heldout), "held-out map", number) if heldout else None
        chooses = self.method.config.checkpoint == "heldout"
        if chooses and mean_map is not None and mean_map < self.best:
            self.best, self.history.best_epoch = mean_map, number
            self.kept = {name: tensor.clone() for name, tensor in self.method.detector_state().items()}
        self.history.epochs.append(Epoch(number=number, loss=loss, heldout=mean_map, images_per_s=speed))
        return self.history.epochs[-1]

    def finish(self) -> History:
        """Restore the epoch that is kept: the best on held-out images, else the last."""
        if self.kept:
            self.method.load_detector(self.kept)
        else:
            self.history.best_epoch = len(self.history.epochs)
        return self.history

    def _train(self, train: Batches, on_step: StepEnd) -> float:
        """Every image once; returns the mean loss."""
        losses = []
        self.method.train()
        self.method.num_steps = self.method.config.epochs * -(-len(train) // train.batch_size)
        for index in train.shuffled(self.generator):
            self.method.step = self.history.num_steps
            images = train.images(index)
            taught = train.taught(index, images)
            with train.autocast:
                loss = self.method.loss(images, taught)
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(loss.detach() * len(index))
            self.history.num_steps += 1
            on_step(len(index))
        if self.scheduler:
            self.scheduler.step()
        return torch.stack(losses).sum().item() / len(train)


def fit(
    method: Method,
    train: Batches,
    heldout: Batches | None,
    *,
    generator: torch.Generator,
    on_step: StepEnd,
    on_epoch: EpochEnd,
    resume: dict[str, Any] | None = None,
    checkpoint: Checkpoint = lambda state: None,
) -> History:
    """Train in place, then calibrate on `heldout` images, if there are any.

    With the checkpoint rule "heldout" the epoch with the lowest mean anomaly map on them is restored first.

    `checkpoint` is handed the function that gives the state after every epoch, `resume` is such a state.
    Raises TrainingDiverged when a loss or a held-out value is not finite.
    """
    training = Training(method, train.precision, generator)
    if resume is None:
        method.prepare(train.pairs())
    else:
        training.resume(resume)
    while len(training.history.epochs) < method.config.epochs:
        on_epoch(training.epoch(train, heldout, on_step))
        if len(training.history.epochs) < method.config.epochs:
            checkpoint(training.state)
    history = training.finish()
    if heldout:
        method.eval()
        with torch.no_grad(), heldout.autocast:
            method.calibrate(heldout.pairs())
    return history


@torch.no_grad()
def heldout_mean(method: Method, batches: Batches) -> float:
    """Mean of the anomaly maps of normal images that were not trained on."""
    method.eval()
    total = torch.zeros((), dtype=torch.float64, device=batches.pixels.device)  # read once: reading waits
    for index in batches.in_order():
        images = batches.images(index)
        taught = batches.taught(index, images)
        with batches.autocast:
            maps = method.anomaly_map(images, taught)
        total += maps.double().mean((1, 2)).sum()
    return total.item() / len(batches)


def split_heldout(counts: Sequence[int], share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices (train, held out) into the concatenated categories: `share` of each, at least one image.

    Raises ValueError for a category with fewer than two images.
    """
    generator = np.random.default_rng(np.random.SeedSequence([seed, 0x5B117]))
    train, heldout, offset = [], [], 0
    for count in counts:
        if count < 2:
            raise ValueError(f"a held-out split needs at least 2 train images, there are {count}")
        order = offset + generator.permutation(count)
        cut = min(max(1, round(share * count)), count - 1)
        heldout.append(np.sort(order[:cut]))
        train.append(np.sort(order[cut:]))
        offset += count
    return np.concatenate(train), np.concatenate(heldout)


def choose_precision(request: str, device: torch.device) -> str:
    """The precision that `auto` means on this device: bf16 where the hardware computes it, else fp32."""
    if request != "auto":
        return request
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    fast = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return "bf16" if device.type == "cpu" and fast else "fp32"


def autocast_for(precision: str, device: torch.device) -> AbstractContextManager:
    """A context in which networks run, to be entered once: inside itself it would never be left again."""
    if precision == "fp32":
        return torch.autocast(device.type, enabled=False)
    return torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[precision])


def cap_memory(device: torch.device, share: float) -> None:
    """Let this process take this part of a GPU's memory and no more, whatever it was allowed before."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(float(share), device.index)


def free_memory(device: torch.device) -> int:
    """Bytes that this process can still take on the device; what torch has set aside counts as taken."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        allowed = int(torch.cuda.get_per_process_memory_fraction(device.index) * total)
        return max(0, min(free, allowed - torch.cuda.memory_reserved(device)))
    return _available_ram()


def fused(optimizer: Optimizer, device: torch.device) -> Optimizer:
    """The optimizer, on a GPU with one kernel for all parameters where it has one; last digits may differ."""
    for group in optimizer.param_groups if device.type == "cuda" else ():
        if "fused" in group:
            group["fused"], group["foreach"] = True, False
    return optimizer


def _own_share(device: torch.device) -> float:
    """A cell's part of a machine whose cells run side by side on its cores, as that of its threads."""
    cores = psutil.cpu_count(logical=False) or os.cpu_count() or 1
    return 1.0 if device.type == "cuda" else min(1.0, torch.get_num_threads() / cores)


def place_networks(method: Method, device: torch.device) -> None:
    """Move to the device, convolutions in channels-last order, which is faster on every device we know.

    On a GPU fp32 means fp32 and every call takes the same algorithm: cuDNN would use TF32 with its 10 bits.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    method.to(device)
    method.to(memory_format=torch.channels_last)


def _available_ram() -> int:
    """Bytes that no process uses and that the limit of the container, if there is one, leaves."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2  # macOS does not say
    line = next(line for line in meminfo.read_text("ascii").splitlines() if line.startswith("MemAvailable"))
    return min([1024 * int(line.split()[1]), *_left_in(Path("/sys/fs/cgroup"))])


def _left_in(cgroup: Path) -> Iterator[int]:
    """What the memory limit of a container leaves, in either version of control groups; nothing without.

    Pages of files that nobody reads now count as used there, and are given up when memory is asked for.
    """
    for folder, limit, used, idle in (
        (cgroup, "memory.max", "memory.current", "inactive_file"),
        (cgroup / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        if all((folder / name).exists() for name in (limit, used, "memory.stat")):
            most = (folder / limit).read_text("ascii").strip()
            stat = dict(line.split() for line in (folder / "memory.stat").read_text("ascii").splitlines())
            if most != "max":
                taken = int((folder / used).read_text("ascii")) - int(stat.get(idle, 0))
                yield max(0, int(most) - taken)


def _device_of(method: Method) -> torch.device:
    return next(method.parameters()).device


def _finite(value: float, what: str, epoch: int) -> float:
    if not np.isfinite(value):
        raise TrainingDiverged(f"the {what} of epoch {epoch} is {value}; a lower learning rate may help")
    return value
