"""The same work by kdbench, anomalib and adeval, in turn, in one process: ratios with their spread.

    make bench-peers IMAGES=.../mvtec_ad/bottle WEIGHTS=.../resnet18.pth

Needs anomalib and adeval beside kdbench; `make bench-peers` installs them in an environment of their own.
Both sides have the same images, teacher, image size, batch size and number of epochs, and all cores. What is
found replaces the file of this machine among those of peers_page.py, which renders the page.
"""

import argparse
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from peers_page import OUT, ROWS, page, section, write_rows

from kdbench.backbone import read_state, teacher
from kdbench.data.fingerprint import fingerprint
from kdbench.data.store import Images, Truth, open_images, open_truth
from kdbench.engine import train
from kdbench.engine.batches import Batches
from kdbench.engine.device import autocast_for, choose_precision, place_networks
from kdbench.engine.evaluate import Scored, measure, score
from kdbench.metrics.exact import label_regions
from kdbench.metrics.presets import PRESETS
from kdbench.registry import get_dataset, get_method
from kdbench.weights import find_weights

SIZE, BATCH, BACKBONE, DEVICE = 256, 32, "resnet18.tv_in1k", torch.device("cpu")
PACKAGES = ("anomalib", "adeval", "torch", "timm", "numpy")


@dataclass(kw_only=True)
class Ratio:
    """Seconds of one kind of work by both sides, measured in turn."""

    what: str
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    def pair(self, ours: Callable[[], Any], theirs: Callable[[], Any]) -> None:
        """Time one after the other."""
        self.ours.append(seconds(ours))
        self.theirs.append(seconds(theirs))

    def row(self) -> dict[str, Any]:
        """The ratio of the medians, and the smallest and largest of a pair."""
        pairs = [b / a for a, b in zip(self.ours, self.theirs, strict=True)]
        ratio = statistics.median(self.theirs) / statistics.median(self.ours)
        rounded = {"ratio": ratio, "lowest": min(pairs), "highest": max(pairs)}
        found = {name: round(value, 2) for name, value in rounded.items()}
        return {"what": self.what, **found, "pairs": len(pairs)}


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# --- the two sides ----------------------------------------------------------------------------------------


class Ours:
    """STFPM by the steps of a cell."""

    def __init__(self, weights: Path, images: Images, epochs: int, seed: int, precision: str) -> None:
        kind = get_method("stfpm")
        config = kind.Config(backbone=BACKBONE, image_size=SIZE, epochs=epochs, checkpoint="last")
        torch.manual_seed(seed)
        self.method = kind(config, teacher(BACKBONE, config.levels, find_weights(BACKBONE, weights)))
        place_networks(self.method, DEVICE)
        self.images, self.seed, self.epoch_s = images, seed, list[float]()
        self.precision = choose_precision(precision, DEVICE)

    def batches(self, pixels: np.ndarray, *, cached: bool = False) -> Batches:
        found = {"device": DEVICE, "precision": self.precision, "batch_size": BATCH, "cached": cached}
        return Batches(np.ascontiguousarray(pixels), self.method.teacher, BACKBONE, **found)

    def fit(self) -> None:
        """All epochs; also notes how long each took."""
        generator = torch.Generator().manual_seed(self.seed)
        data = self.batches(self.images.train, cached=True)
        training = train.Training(self.method, self.precision, generator)
        for _ in range(self.method.config.epochs):
            self.epoch_s.append(seconds(lambda: training.epoch(data, None, lambda count: None)))
        training.finish(None)

    def test(self) -> Scored:
        return score(self.method, self.batches(self.images.test), lambda count: None)

    def infer(self, count: int) -> Callable[[], Any]:
        """Work that takes `count` decoded images to maps and scores."""
        data, index = self.batches(self.images.test[:count]), torch.arange(count)
        self.method.eval()

        @torch.inference_mode()
        def work() -> Any:
            pixels = data.images(index)
            with autocast_for(self.precision, DEVICE):
                found = self.method.anomaly_map(pixels, self.method.teacher(pixels))
            return self.method.image_score(found)

        return work


class Anomalib:
    """anomalib's Stfpm by its Engine, its evaluation during training left out."""

    def __init__(self, weights: Path, category: Path, epochs: int, seed: int, folder: Path) -> None:
        from anomalib.data import MVTecAD
        from anomalib.engine import Engine
        from anomalib.models import Stfpm
        from lightning.pytorch import Callback, seed_everything

        seed_everything(seed)
        with LocalWeights(weights):
            self.model = Stfpm(backbone="resnet18", evaluator=False, visualizer=False)
        # Its default of 8 loader processes is meant for more cores than two.
        workers = os.cpu_count() or 1
        sizes = {"train_batch_size": BATCH, "eval_batch_size": BATCH, "num_workers": workers}
        self.data = MVTecAD(root=category.parent, category=category.name, **sizes)
        self.epoch_s = epoch_s = list[float]()

        class Clock(Callback):
            def on_train_epoch_start(self, *_: Any) -> None:
                self.started = time.perf_counter()

            def on_train_epoch_end(self, *_: Any) -> None:
                epoch_s.append(time.perf_counter() - self.started)

        options = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu", "devices": 1}
        # Its check of the test images after every epoch is not part of training.
        unchecked = {"limit_val_batches": 0}
        self.engine = Engine(
            max_epochs=epochs, default_root_dir=folder, callbacks=[Clock()], **options, **unchecked
        )

    def fit(self) -> None:
        self.engine.fit(model=self.model, datamodule=self.data)

    @torch.inference_mode()
    def test(self, names: Sequence[str]) -> Scored:
        """Its maps and scores of the test images in the order of `names`."""
        self.data.setup("test")
        self.model.eval()
        maps, scores = {}, {}
        for batch in self.data.test_dataloader():
            found = self.model.model(self.model.pre_processor.transform(batch.image))
            for path, one, value in zip(batch.image_path, found.anomaly_map, found.pred_score, strict=True):
                key = "/".join(Path(path).parts[-2:])
                maps[key], scores[key] = one.squeeze().numpy(), float(value)
        return Scored(
            maps=np.stack([maps[name] for name in names]),
            image_score=np.array([scores[name] for name in names]),
        )

    def infer(self, pixels: np.ndarray, folder: Path) -> Callable[[], Any]:
        """Its torch inferencer on decoded images."""
        from anomalib.deploy import ExportType, TorchInferencer

        self.engine.export(model=self.model, export_type=ExportType.TORCH, export_root=folder)
        os.environ["TRUST_REMOTE_CODE"] = "1"  # its own file, written a moment ago
        inferencer = TorchInferencer(next(folder.rglob("*.pt")), device="cpu")
        images = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
        return lambda: inferencer.predict(images)


class LocalWeights:
    """While it is entered, timm takes a ResNet-18 up to its third stage from a file."""

    def __init__(self, path: Path) -> None:
        self.state = read_state(path)

    def __enter__(self) -> None:
        self.create = create = timm.create_model

        def local(name: str, pretrained: bool = False, **options: Any) -> torch.nn.Module:
            made = create(name, pretrained=False, **options)
            if pretrained:
                lost = [key for key in made.load_state_dict(self.state, strict=False).missing_keys]
                assert all(key.startswith(("layer4", "fc")) for key in lost), lost
            return made

        timm.create_model = local

    def __exit__(self, *error: object) -> None:
        timm.create_model = self.create


# --- what is compared -------------------------------------------------------------------------------------


def training(asked: Any, images: Images, truth: Truth, names: list[str], folder: Path) -> tuple[Any, ...]:
    """Both sides train with each seed in turn; epochs, whole trainings, and what the detectors are worth."""
    epoch, whole = (
        Ratio(what="STFPM training epoch"),
        Ratio(what="STFPM training, teacher and start included"),
    )
    accuracy, last = [], None
    for seed in range(asked.seeds):
        ours = Ours(asked.weights, images, asked.epochs, seed, asked.precision)
        theirs = Anomalib(asked.weights, asked.images, asked.epochs, seed, folder / str(seed))
        whole.pair(ours.fit, theirs.fit)
        epoch.ours += ours.epoch_s
        epoch.theirs += theirs.epoch_s
        values = [
            measure(found, truth, PRESETS["exact"]).metrics for found in (ours.test(), theirs.test(names))
        ]
        accuracy.append([(v["image_auroc"], v["pixel_auroc"]) for v in values])
        print(f"seed {seed}: epochs {ours.epoch_s} and {theirs.epoch_s}; {accuracy[-1]}", flush=True)
        last = (ours, theirs)
    return epoch, whole, accuracy, last


def metrics(
    maps: np.ndarray, image_score: np.ndarray, masks: np.ndarray, label: np.ndarray, rounds: int
) -> list:
    """All eight metrics against anomalib's three of pixels and adeval's, which find the regions each time."""
    from adeval import EvalAccumulator
    from anomalib.metrics.aupr import _AUPR
    from anomalib.metrics.aupro import _AUPRO
    from anomalib.metrics.auroc import _AUROC

    if not hasattr(np, "trapz"):
        np.trapz = np.trapezoid  # adeval was written before NumPy 2.4
    scaled = (maps - maps.min()) / (maps.max() - maps.min())  # torchmetrics would squash anything else
    theirs_maps, theirs_masks = torch.from_numpy(scaled), torch.from_numpy(masks)
    shapes = np.full((len(maps), 2), maps.shape[1])

    def of(regions: np.ndarray) -> dict[str, Any]:
        truth = Truth(label=label, marked=np.ones(len(label), bool), regions=regions.ravel(), shapes=shapes)
        return measure(Scored(maps=scaled, image_score=image_score), truth, PRESETS["exact"]).metrics

    def ours() -> dict[str, Any]:
        return of(label_regions(masks))

    stored = label_regions(masks)

    def anomalib() -> dict[str, float]:
        found = {}
        for name, kind in (("pixel_auroc", _AUROC), ("pixel_ap", _AUPR), ("aupro", _AUPRO)):
            metric = kind()
            metric.update(theirs_maps, theirs_masks.int())
            found[name] = float(metric.compute())
        return found

    def adeval() -> dict[str, float]:
        found = EvalAccumulator(0.0, 1.0, 0.0, 1.0)
        found.add_anomap_batch(scaled, masks.astype(np.uint8))
        found.add_image(image_score, label.astype(np.uint8))
        said = found.summary()
        return {"pixel_auroc": said["p_auroc"], "pixel_ap": said["p_aupr"], "aupro": said["p_aupro"]}

    exact = ours()
    for name, values in (("anomalib", anomalib()), ("adeval", adeval())):
        print(name, {key: f"{value:.6f}, exact {exact[key]:.6f}" for key, value in values.items()})
    found = []
    for how, work in (("", ours), (", regions from the image store", lambda: of(stored))):
        for peer, theirs in (("three of anomalib's", anomalib), ("adeval's three", adeval)):
            ratio = Ratio(what=f"eight metrics against {peer}{how}")
            for _ in range(rounds):
                ratio.pair(work, theirs)
            found.append(ratio)
    return found


def inference(ours: Ours, theirs: Anomalib, rounds: int, folder: Path) -> list[Ratio]:
    found = []
    for count in (1, 32):
        ratio = Ratio(what=f"inference, batch {count}")
        one, other = ours.infer(count), theirs.infer(ours.images.test[:count], folder / f"export{count}")
        one(), other()
        for _ in range(rounds * (4 if count == 1 else 1)):
            ratio.pair(one, other)
        found.append(ratio)
    return found


def measurement(asked: Any, ratios: list[Ratio], accuracy: list[Any]) -> dict[str, Any]:
    """What is kept of this machine."""
    gaps = 100 * np.abs(np.diff(np.array(accuracy), axis=1))[:, 0].max(0)  # image, pixel
    return {
        # A precision that was asked for has a section of its own beside that of auto.
        "machine": machine() + ("" if asked.precision == "auto" else f", in {asked.precision}"),
        "day": time.strftime("%Y-%m-%d"),
        "precision": choose_precision(asked.precision, DEVICE),
        "category": asked.images.name,
        "num_train": len_train(asked),
        "num_test": len_test(asked),
        "size": SIZE,
        "batch": BATCH,
        "epochs": asked.epochs,
        "workers": os.cpu_count(),
        "largest_difference": [round(gap, 2) for gap in gaps.tolist()],
        "versions": {name: version(name) for name in PACKAGES},
        "work": [ratio.row() for ratio in ratios],
        "accuracy": [
            {"seed": seed, "kdbench": percent(ours), "anomalib": percent(theirs)}
            for seed, (ours, theirs) in enumerate(accuracy)
        ],
    }


def percent(values: Sequence[float]) -> list[float]:
    return [round(100 * value, 2) for value in values]


def machine() -> str:
    """Cores, processor and the vector units that matter here."""
    said = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.partition(":")[2].strip() for line in said.splitlines() if line.startswith("model name")]
    units = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_tile"}
    has = ", ".join(name for name, flag in units.items() if f" {flag}" in said) or "unknown vector units"
    return f"{os.cpu_count()} cores of {names[0] if names else platform.processor()} with {has}"


def len_train(asked: Any) -> int:
    return len(list((asked.images / "train/good").iterdir()))


def len_test(asked: Any) -> int:
    return len([path for path in (asked.images / "test").rglob("*") if path.is_file()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, required=True, help="a category in MVTec layout")
    parser.add_argument("--weights", type=Path, required=True, help="of torchvision's ResNet-18")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="pairs of metrics and of inference")
    parser.add_argument("--precision", default="auto", choices=("auto", "bf16", "fp32"), help="of kdbench")
    parser.add_argument("--rows", type=Path, default=ROWS, help="folder with a file for each machine")
    parser.add_argument("--out", type=Path, default=OUT, help="the page")
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    dataset = get_dataset("mvtec_ad")
    category = dataset.scan(asked.images.parent, asked.images.name)
    print_ = fingerprint(dataset, category)
    images = open_images(dataset, category, print_, SIZE)
    truth = open_truth(dataset, category, print_, PRESETS["exact"])
    names = ["/".join(sample.path.parts[-2:]) for sample in category.test]
    with tempfile.TemporaryDirectory() as temporary:
        epoch, whole, accuracy, (ours, theirs) = training(asked, images, truth, names, Path(temporary))
        scored = ours.test()
        masks = truth.regions.reshape(scored.maps.shape) > 0
        counted = metrics(scored.maps, scored.image_score, masks, truth.label, asked.rounds)
        ratios = [epoch, whole, *counted, *inference(ours, theirs, asked.rounds, Path(temporary))]
    found = measurement(asked, ratios, accuracy)
    print(section(found))
    written = write_rows(asked.rows, found)
    asked.out.write_text(page(asked.rows), encoding="utf-8")
    print(f"{written} and {asked.out} are written")


if __name__ == "__main__":
    main()
