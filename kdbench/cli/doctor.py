"""The findings of `kdbench doctor`: versions, devices, folders, and how to get what is missing."""

import importlib.metadata
import shutil
import sys
from dataclasses import dataclass

from kdbench.errors import RequestError, number_of
from kdbench.files import cache_folder, folder_of, written_aside
from kdbench.registry import dataset_names, get_dataset
from kdbench.weights import BACKBONES, RANDOM, is_pdn

PACKAGES = (
    "torch",
    "torchvision",
    "timm",
    "ray",
    "pandas",
    "pyarrow",
    "scikit-learn",
    "scikit-image",
    "scipy",
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line: the thing, its state, and advice; `wrong` if kdbench cannot work like this."""

    what: str
    found: str
    advice: str = ""
    wrong: bool = False


def examine() -> list[Finding]:
    """All findings, to be read before the first run."""
    return [*_versions(), *_devices(), *_folders(), *_weights(), *_datasets()]


def _versions() -> list[Finding]:
    found = [Finding(what="python", found=sys.version.split()[0])]
    for package in PACKAGES:
        try:
            found.append(Finding(what=package, found=importlib.metadata.version(package)))
        except importlib.metadata.PackageNotFoundError:
            advice = "install kdbench again: pip install kdbench"
            found.append(Finding(what=package, found="missing", advice=advice, wrong=True))
    return [*found, *_one_build()]


def _one_build() -> list[Finding]:
    """What is wrong if torchvision is of another build than torch."""
    from kdbench.weights import check_build

    try:
        check_build()
    except RequestError as error:
        return [Finding(what="torchvision", found="of another build", advice=str(error), wrong=True)]
    return []


def _devices() -> list[Finding]:
    import torch

    from kdbench.engine.device import choose_precision, free_memory, unused_gpu
    from kdbench.engine.provenance import device_name
    from kdbench.grid.cluster import this_machine

    cpu, cores, num_threads = torch.device("cpu"), this_machine().cpus, torch.get_num_threads()
    may_use = f"this process may use {number_of(cores, 'core')}"
    beyond = f"{may_use}: set OMP_NUM_THREADS={cores} (`kdbench run` does without)"
    found = [
        Finding(
            what="cpu",
            advice=beyond if num_threads > cores else "",
            found=f"{device_name(cpu)}, {number_of(num_threads, 'thread')}, "
            f"{free_memory(cpu) >> 30} GiB free, precision auto = {choose_precision('auto', cpu)}"
            + (", fp32 with depthwise convolutions" if choose_precision("auto", cpu) == "bf16" else ""),
        )
    ]
    for index in range(torch.cuda.device_count()):
        gpu = torch.device("cuda", index)
        precision = choose_precision("auto", gpu)
        text = f"{device_name(gpu)}, {free_memory(gpu) >> 30} GiB free, precision auto = {precision}"
        found.append(Finding(what=str(gpu), found=text))
    if not torch.cuda.is_available():
        slow = "runs on the CPU; paper profiles take hours there"
        found.append(Finding(what="cuda", found="none", advice=unused_gpu() or slow))
    return found


def _folders() -> list[Finding]:
    cache = cache_folder()
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    try:
        with written_aside(cache / ".probe") as aside:
            aside.write_bytes(b"kdbench")
        (cache / ".probe").unlink(missing_ok=True)
        writable = True
    except OSError:
        writable = False
    return [
        Finding(
            what="cache",
            found=f"{cache}, {free >> 30} GiB free" + ("" if writable else ", not writable"),
            advice="" if writable else "set KDBENCH_CACHE to a folder that you can write",
            wrong=not writable,
        )
    ]


def _weights() -> list[Finding]:
    from kdbench.weights import cached_weights

    sources = {name: cached_weights(name) for name in BACKBONES if name not in RANDOM}
    found = [
        Finding(what=f"teacher {name}", found=weights.source) for name, weights in sources.items() if weights
    ]
    of_efficientad = "a file of yours (--weights), or kdbench distil-teacher"
    of_others = "downloaded at the first use; or --weights FILE, or the folder KDBENCH_WEIGHTS"
    for advice, own in ((of_others, False), (of_efficientad, True)):
        absent = [name for name, weights in sources.items() if weights is None and is_pdn(name) == own]
        if absent:
            found.append(Finding(what="teachers not here", found=", ".join(absent), advice=advice))
    return found


def _datasets() -> list[Finding]:
    found = []
    data = folder_of("KDBENCH_DATA")
    advice = "" if data else "or use --root FOLDER"
    found.append(Finding(what="KDBENCH_DATA", found=str(data or "not set"), advice=advice))
    for name in dataset_names():
        dataset = get_dataset(name)
        if name == "synthetic":
            found.append(Finding(what=f"dataset {name}", found="embedded"))
            continue
        if not dataset.categories:
            found.append(Finding(what=f"dataset {name}", found="your own images: --root FOLDER"))
            continue
        folder = data / name if data else None
        present = dataset.present(folder) if folder and folder.is_dir() else ()
        total = len(dataset.categories)
        of_all = f"{len(present)} of {number_of(total, 'category')}"
        advice = "" if len(present) == total else f"from {dataset.source}"
        found.append(Finding(what=f"dataset {name}", found=of_all, advice=advice))
    return found
