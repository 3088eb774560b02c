"""Small trees of images with the real layouts, and the folders that tests may use."""

import atexit
import functools
import gc
import hashlib
import itertools
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

SHARED = Path(__file__).parents[2] / "shared"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--auto-precision",
        choices=("fp32", "bf16"),
        help="what precision `auto` means in the processes of the tests, whatever this machine computes fast;"
        " processes that a test starts ask the machine",
    )


def pytest_configure(config: pytest.Config) -> None:
    if asked := config.getoption("auto_precision"):
        from kdbench.engine import device

        device.computes_bf16 = functools.wraps(device.computes_bf16)(lambda device: asked == "bf16")


def pytest_collection_finish() -> None:
    import hypothesis  # noqa: F401, it asks the collector who refers to its parts, which a frozen one forgets

    gc.freeze()
    atexit.register(gc.unfreeze)  # some modules want to go in order


@pytest.fixture(autouse=True)
def _modules_are_no_garbage() -> Iterator[None]:
    """A cell collects garbage when it ends: not among the million objects of modules that a test imported."""
    before = len(sys.modules)
    yield
    if len(sys.modules) > before:
        gc.freeze()


@pytest.fixture(autouse=True)
def _own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test has its own cache and sees none of the user's data or weights."""
    monkeypatch.setenv("KDBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("KDBENCH_DATA", raising=False)
    monkeypatch.delenv("KDBENCH_WEIGHTS", raising=False)


@pytest.fixture(autouse=True)
def _nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run says does not depend on what else this machine does; a test of that sets its own limit."""
    from kdbench import machine

    monkeypatch.setattr(machine, "SOME_CORES", math.inf)


@pytest.fixture
def shared() -> Path:
    """The folder of real images and weights beside the checkout; skips where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no folder `shared` with real images and weights beside the checkout")
    return SHARED


def write_image(path: Path, seed: int, size: int = 40, square: bool = False) -> Path:
    """A noisy grey gradient, with a bright square where `square` asks for a defect."""
    generator = np.random.default_rng(seed)
    pixels = np.linspace(60, 140, size)[None, :, None] + generator.normal(0, 8, (size, size, 3))
    if square:
        pixels[10:22, 14:26] = 250
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
    return path


def write_mask(path: Path, size: int = 40) -> Path:
    """The mask of `write_image`'s square."""
    mask = np.zeros((size, size), np.uint8)
    mask[10:22, 14:26] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def picture(path: Path, value: int | None = None, size: tuple[int, int] = (10, 8), mode: str = "L") -> Path:
    """A plain image, grey by its path if no value is given, so that no two have the same content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if value is None:
        pixels = np.frombuffer(hashlib.sha256(str(path).encode()).digest() * 10, np.uint8)[
            : size[0] * size[1]
        ]
        image = Image.fromarray(pixels.reshape(size[1], size[0]))
    else:
        image = Image.new("L", size, value)
    image.convert(mode).save(path, "JPEG" if path.suffix.lower() == ".jpg" else None)
    return path


def counts(category: Any) -> tuple[int, int, int]:
    """Training images, normal and defective test images."""
    labels = [sample.label for sample in category.test]
    return len(category.train), labels.count(False), labels.count(True)


def without(part: str) -> Callable[[Path], str]:
    """Deletes a file or folder of a tree, and says which."""

    def spoil(root: Path) -> str:
        path = root / part
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return str(path)

    return spoil


def write_category(
    root: Path, name: str, *, seed: int = 0, train: int = 10, good: int = 4, bad: int = 4
) -> Path:
    """A category in MVTec layout with one kind of defect."""
    folder = root / name
    for i in range(train):
        write_image(folder / "train/good" / f"{i:03}.png", 1000 * seed + i)
    for i in range(good):
        write_image(folder / "test/good" / f"{i:03}.png", 1000 * seed + 100 + i)
    for i in range(bad):
        write_image(folder / "test/broken" / f"{i:03}.png", 1000 * seed + 200 + i, square=True)
        write_mask(folder / "ground_truth/broken" / f"{i:03}_mask.png")
    return folder


@pytest.fixture(scope="session")
def _mvtec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images") / "mvtec"
    write_category(root, "bottle", seed=1)
    write_category(root, "screw", seed=2)
    return root


@pytest.fixture
def mvtec(_mvtec: Path, tmp_path: Path) -> Path:
    """A root with the categories bottle and screw of mvtec_ad, 40x40 pixels, to do with as one likes."""
    return shutil.copytree(_mvtec, tmp_path / "mvtec")


@pytest.fixture
def kdbench(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
    """Run a command line in this process: (exit code, everything it printed)."""
    from kdbench.cli import app as cli
    from kdbench.cli import terminal

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["kdbench", *map(str, words)])
        for console in (terminal.out, terminal.err):
            monkeypatch.setattr(console, "_width", 300)
        with pytest.raises(SystemExit) as left:
            cli.main()
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out + captured.err

    return call


def slow_but(names: Iterable[str], *quick: str) -> list[Any]:
    """Parameters of a test: `quick` ones run with the default tests, the other names with the slow ones."""
    return [*quick, *(pytest.param(name, marks=pytest.mark.slow) for name in names if name not in quick)]


def replaced(usual: Sequence[object], words: Sequence[object]) -> list[object]:
    """The words of a command: those of `usual`, without options that `words` give too, then `words`.

    The options of `usual` have one value each, or none. An option given twice is an error.
    """

    def names(given: Sequence[object]) -> list[str]:
        texts = [*map(str, given), ""]
        pairs = itertools.pairwise(texts)
        return [one + two.partition("=")[0] * (one == "--set") for one, two in pairs if one.startswith("--")]

    kept: list[object] = []
    given, keep = set(names(words)), True
    for index, word in enumerate(usual):
        if str(word).startswith("--"):
            keep = names(usual[index : index + 2])[0] not in given
        kept += [word] * keep
    return [*kept, *words]


# The smallest run there is: three convolutions, 32 pixels, two epochs.
STFPM = ("--methods", "stfpm", "--dataset", "mvtec_ad")
SMALL = ("--backbone", "tiny", "--epochs", "2", "--set", "all.image_size=32", "--set", "all.batch_size=4")
TINY = (*SMALL, "--executor", "local", "--no-latency")

ALL_SET = {"all.image_size": 32, "all.batch_size": 4}


def tiny_request(root: Path, results: Path, **changes: object) -> Any:
    """A request for STFPM with the smallest network on `root`; `changes` are keys of it."""
    from kdbench.grid.request import Request

    asked = {
        "methods": ("stfpm",),
        "dataset": ("mvtec_ad",),
        "root": root,
        "backbone": "tiny",
        "epochs": 2,
        "set": ALL_SET,
        "results": results,
    }
    return Request(**(asked | changes))


def tiny_jobs(root: Path, results: Path, **changes: object) -> list[Any]:
    """The jobs of such a request."""
    from kdbench.grid.plan import plan

    return plan(tiny_request(root, results, **changes)).jobs


def smallest(kind: Any, seed: int = 0, **changes: object) -> Any:
    """An untrained method, by its class or name, of the smallest networks and for images of 64 pixels.

    `changes` are keys of its Config. The networks' start follows `seed`, and torch's random state with it.
    """
    import torch

    from kdbench.backbone import teacher
    from kdbench.registry import get_method
    from kdbench.weights import find_weights

    kind = get_method(kind) if isinstance(kind, str) else kind
    config = kind.Config(**{"backbone": "tiny", "image_size": 64} | kind.tiny | changes)
    network = teacher(config.backbone, config.levels, find_weights(config.backbone))
    torch.manual_seed(seed)
    return kind(config, network)
