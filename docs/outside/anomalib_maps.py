"""Trains a model of anomalib 2.7 on one category and writes its maps for `kdbench score`.

    python anomalib_maps.py --root datasets/MVTecAD --category bottle --model patchcore --out maps

Below OUT: a float32 TIFF for each test image in the folders of the dataset, image_scores.csv with the scores
of the model, and anomalib.json with AUROCs by anomalib's metric. Maps and scores are as the model makes them.
`engine_test` in anomalib.json has what `Engine.test` says: it cuts normalised scores off at 0 and 1, and that
makes ties. Needs anomalib, not kdbench.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import torch
from anomalib.data import MVTecAD
from anomalib.engine import Engine
from anomalib.metrics.auroc import _AUROC
from anomalib.models import Patchcore, Stfpm
from lightning.pytorch import seed_everything
from PIL import Image


def options() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--category", required=True)
    parser.add_argument("--model", choices=("patchcore", "stfpm"), required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--image-size", type=int, default=256, help="side of the square that the model sees")
    parser.add_argument("--epochs", type=int, default=100, help="of STFPM")
    parser.add_argument("--coreset", type=float, default=0.1, help="share of patches that PatchCore keeps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=0, help="processes that load images")
    return parser.parse_args()


def trained(asked: argparse.Namespace) -> tuple[Any, Any, dict[str, float]]:
    """The model, the data, and the metrics of `Engine.test`."""
    seed_everything(asked.seed)
    kind: Any = Patchcore if asked.model == "patchcore" else Stfpm
    more = {"coreset_sampling_ratio": asked.coreset} if asked.model == "patchcore" else {}
    size = (asked.image_size, asked.image_size)
    model = kind(
        backbone=asked.backbone,
        pre_processor=kind.configure_pre_processor(size),
        visualizer=False,
        **more,
    )
    data = MVTecAD(root=asked.root, category=asked.category, eval_batch_size=16, num_workers=asked.workers)
    epochs = {"max_epochs": asked.epochs} if asked.model == "stfpm" else {}
    engine = Engine(default_root_dir=asked.out / "anomalib", logger=False, **epochs)
    engine.fit(model=model, datamodule=data)
    (metrics,) = engine.test(model=model, datamodule=data)
    return model, data, metrics


@torch.inference_mode()
def write(model: Any, data: Any, out: Path, root: Path) -> dict[str, float]:
    """Write the maps and scores of all test images; returns their AUROCs."""
    model.eval().cpu()
    lines, maps, masks, labels = [], [], [], []
    for batch in data.test_dataloader():
        images, gt_mask = model.pre_processor.transform(batch.image, batch.gt_mask)
        found = model.model(images)
        for path, one, score in zip(batch.image_path, found.anomaly_map, found.pred_score, strict=True):
            name = Path(path).resolve().relative_to(root.resolve())
            file = (out / name).with_suffix(".tiff")
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(one.squeeze().float().numpy()).save(file)
            lines.append((name.as_posix(), float(score)))
        maps.append(found.anomaly_map.squeeze(1))
        masks.append(gt_mask)
        labels.append(batch.gt_label)
    with (out / "image_scores.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "image_score"), *lines])
    scores = torch.tensor([score for _, score in lines])
    return {
        "image_AUROC": auroc(scores, torch.cat(labels)),
        "pixel_AUROC": auroc(torch.cat(maps).flatten(), torch.cat(masks).flatten()),
    }


def auroc(scores: torch.Tensor, truth: torch.Tensor) -> float:
    """anomalib's AUROC of scores scaled to 0..1: it would put any others through a sigmoid."""
    metric = _AUROC()
    metric.update((scores - scores.min()) / (scores.max() - scores.min()), truth.int())
    return float(metric.compute())


def main() -> None:
    """Train, write maps and scores, then what anomalib says of them."""
    asked = options()
    model, data, tested = trained(asked)
    found = write(model, data, asked.out, asked.root) | {"engine_test": tested}
    (asked.out / "anomalib.json").write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
