"""A file is a registration, a package may bring methods of its own, and listing them is cheap."""

import hashlib
import importlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import TINY

from kdbench import registry
from kdbench.dataset import Dataset
from kdbench.errors import RequestError
from kdbench.registry import (
    FAMILIES,
    dataset_names,
    get_dataset,
    get_method,
    method_facts,
    method_names,
    methods_by_family,
)
from kdbench.results.store import CELLS, read

ROOT = Path(__file__).parents[1]

SOURCE = '''"""A third party's method: STFPM under another name.

More about it.
"""

from typing import ClassVar

from kdbench.methods.stfpm import STFPM


class Other(STFPM):
    """Nothing new."""

    name = "other"
    paper = "doi:10.1000/182"
    fidelity = "after the abstract"
    departures: ClassVar[tuple[str, ...]] = ("all of it",)


METHOD = Other
'''


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Install a package of another party with one method: entry point name -> module with this source."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.syspath_prepend(site)
    modules = set(sys.modules)

    def add(name: str, source: str = SOURCE, module: str = "other_method") -> None:
        (site / f"{module.replace('.', '/')}.py").write_text(source)
        info = site / "others-1.0.dist-info"
        info.mkdir(exist_ok=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: others\nVersion: 1.0\n")
        with (info / "entry_points.txt").open("a") as file:
            file.write(f"[kdbench.methods]\n{name} = {module}\n")
        importlib.invalidate_caches()
        registry._method_modules.cache_clear()

    yield add
    registry._method_modules.cache_clear()
    registry.method_sha256.cache_clear()
    for module in set(sys.modules) - modules:
        if str(getattr(sys.modules[module], "__file__", "")).startswith(str(site)):
            del sys.modules[module]


def files_of(folder: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / folder).glob("*.py"))


@pytest.mark.parametrize(("folder", "names"), [("methods", method_names()), ("datasets", dataset_names())])
def test_every_file_is_a_registration_but_those_that_begin_with_an_underline(
    folder: str, names: tuple[str, ...]
) -> None:
    assert list(names) == [name for name in files_of(folder) if not name.startswith("_")]


def test_the_first_method_and_the_embedded_dataset_are_there() -> None:
    assert "stfpm" in method_names()
    assert {"mvtec_ad", "synthetic"} <= set(dataset_names())
    assert "_layout" in files_of("datasets")


@pytest.mark.parametrize("name", method_names())
def test_facts_read_from_the_source_are_those_of_the_class(name: str) -> None:
    kind, facts = get_method(name), method_facts(name)
    assert facts.name == kind.name == name
    assert facts.module == kind.__module__
    assert facts.paper == kind.paper
    assert (facts.family, facts.year, facts.licence) == (kind.family, kind.year, kind.licence)
    assert facts.fidelity == kind.fidelity
    assert facts.departures == tuple(kind.departures)
    assert facts.summary == (sys.modules[kind.__module__].__doc__ or "").partition("\n")[0]
    assert facts.summary.endswith((".", "!", "?"))


def test_methods_are_grouped_by_family_and_within_it_ordered_by_year() -> None:
    families = {family: [f.name for f in facts] for family, facts in methods_by_family(method_names())}
    assert list(families) == [family for family in FAMILIES if family]
    known = ["stfpm", "dcam", "efficientad"]
    assert [name for name in families["forward"] if name in known] == known
    assert "dskd" in families["both"]
    for names in families.values():
        assert names == sorted(names, key=lambda name: (method_facts(name).year, name))

    assert sorted(name for names in families.values() for name in names) == list(method_names())


@pytest.mark.parametrize("name", dataset_names())
def test_a_dataset_is_found_by_its_name(name: str) -> None:
    assert isinstance(get_dataset(name), Dataset)
    assert get_dataset(name).name == name


def test_an_unknown_name_is_answered_with_the_nearest_and_with_all() -> None:
    methods = ", ".join(method_names())
    for find in (get_method, method_facts):
        with pytest.raises(RequestError) as raised:
            find("stfmp")
        assert str(raised.value) == f"no method 'stfmp'. Did you mean 'stfpm'? Methods: {methods}"
    with pytest.raises(RequestError) as raised:
        get_dataset("mvtec")
    datasets = ", ".join(dataset_names())
    assert str(raised.value) == f"no dataset 'mvtec'. Did you mean 'mvtec_ad'? Datasets: {datasets}"


@pytest.mark.parametrize("name", ["_layout", "", "os", "../cell", "stfpm.STFPM", "kdbench.methods.stfpm"])
def test_what_is_not_on_the_list_is_not_imported(name: str) -> None:
    with pytest.raises(RequestError, match="no method"):
        get_method(name)
    with pytest.raises(RequestError, match="no dataset"):
        get_dataset(name)


def test_listing_loads_neither_torch_nor_ray_nor_pandas() -> None:
    script = (
        "import sys, kdbench, kdbench.registry as r\n"
        "facts = [r.method_facts(name) for name in r.method_names()]\n"
        "data = [r.get_dataset(name).title for name in r.dataset_names()]\n"
        "assert facts and data\n"
        "print(*{'torch', 'torchvision', 'timm', 'ray', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# --- methods of other packages ----------------------------------------------------------------------------


def test_a_method_of_another_package_is_listed(
    install: Callable[..., None], kdbench: Callable[..., tuple[int, str]]
) -> None:
    install("other")
    assert method_names()[-1] == "other"
    facts = method_facts("other")
    assert facts.paper == "doi:10.1000/182"
    assert facts.departures == ("all of it",)
    assert facts.summary == "A third party's method: STFPM under another name."
    assert "other_method" not in sys.modules  # read, not imported
    code, text = kdbench("list", "methods")
    assert code == 0
    assert "doi:10.1000/182" in text
    assert "other: all of it" in text
    assert "other: no family is named" in text  # and it is listed all the same


def test_a_method_of_another_package_runs_like_ours(
    install: Callable[..., None], kdbench: Callable[..., tuple[int, str]], mvtec: Path, tmp_path: Path
) -> None:
    install("other")
    words = ("--methods", "other", "--dataset", "mvtec_ad", "--root", mvtec, "--categories", "bottle", *TINY)
    code, text = kdbench("run", *words, "--results", tmp_path / "r", "--report", tmp_path / "report")
    assert code == 0, text
    (row,) = read(tmp_path / "r", CELLS).to_pylist()
    assert (row["method"], row["status"]) == ("other", "ok")
    assert 0.5 < row["image_auroc"] <= 1
    assert "doi:10.1000/182" in (tmp_path / "report/leaderboard.md").read_text()


def test_a_method_is_hashed_with_what_it_imports_of_its_own_package(
    install: Callable[..., None], tmp_path: Path
) -> None:
    """Whoever edits a helper of a method must not have its old numbers in silence."""
    package = tmp_path / "site/other_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "unused.py").write_text("UNUSED = 1\n")
    (package / "deeper.py").write_text("SHARE = 0.5\n")
    (package / "losses.py").write_text("from . import deeper\n\nSHARE = deeper.SHARE\n")
    helped = SOURCE.replace("from kdbench", "from other_package.losses import SHARE\nfrom kdbench")
    install("other", helped, "other_package.method")
    first = registry.method_sha256("other")
    for name, content, same in (
        ("unused", "UNUSED = 2\n", True),
        ("losses", "from .deeper import SHARE\n", False),
        ("deeper", "SHARE = 0.25\n", False),
    ):
        before = registry.method_sha256("other")
        (package / f"{name}.py").write_text(content)
        registry.method_sha256.cache_clear()
        assert (registry.method_sha256("other") == before) == same, name
    assert registry.method_sha256("other") != first


def test_a_method_of_one_file_has_the_hash_of_that_file(install: Callable[..., None], tmp_path: Path) -> None:
    install("other")
    expected = hashlib.sha256((tmp_path / "site/other_method.py").read_bytes()).hexdigest()
    assert registry.method_sha256("other") == expected


def test_two_methods_of_one_name_are_an_error(
    install: Callable[..., None], kdbench: Callable[..., tuple[int, str]]
) -> None:
    install("stfpm")
    with pytest.raises(RequestError) as raised:
        method_names()
    expected = "two methods are called 'stfpm': kdbench.methods.stfpm and other_method"
    assert str(raised.value) == expected
    assert kdbench("list", "methods") == (2, f"error: {expected}\n")


def test_two_packages_may_not_bring_the_same_name(install: Callable[..., None], tmp_path: Path) -> None:
    install("other")
    info = tmp_path / "site/more-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: more\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[kdbench.methods]\nother = more_method\n")
    registry._method_modules.cache_clear()
    with pytest.raises(RequestError, match="two methods are called 'other': other_method and more_method"):
        method_names()


@pytest.mark.parametrize(
    "source",
    [
        "x = 1\n",
        "this is not python\n",
        "from kdbench.methods.stfpm import STFPM\nMETHOD = STFPM\n",
        "from kdbench.methods.stfpm import STFPM\nclass A(STFPM):\n    paper = str(1)\nMETHOD = A\n",
    ],
    ids=["no METHOD", "not Python", "class elsewhere", "not literal"],
)
def test_a_broken_package_is_named_in_one_message(
    install: Callable[..., None], kdbench: Callable[..., tuple[int, str]], source: str
) -> None:
    install("other", source)
    code, text = kdbench("list", "methods")
    assert code == 2
    assert "'other'" in text
    assert "other_method" in text


def test_a_package_whose_module_is_missing_is_named_in_one_message(
    install: Callable[..., None], kdbench: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    install("other")
    (tmp_path / "site/other_method.py").unlink()
    importlib.invalidate_caches()
    code, text = kdbench("list", "methods")
    assert code == 2
    assert "other_method" in text
