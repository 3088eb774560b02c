"""The layout of the repository, the direction of its imports, and what an import costs."""

import ast
import json
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LINKED = ("methods", "datasets", "sweeps", "reports")
STAGES = ("metrics", "results", "data", "deploy", "engine", "grid", "cli")

# The entries of kdbench/ in layers, lowest first. An entry imports only what stands before it: in an earlier
# line, or to the left in its own.
LAYERS = (
    ("errors", "metrics", "files", "picture", "weights", "cell", "machine", "results"),  # plain data
    ("dataset", "backbone", "method", "registry"),  # what a plug-in may import
    ("defects", "methods", "datasets"),  # the plug-ins
    ("data",),  # images on disk
    ("deploy",),  # files that leave kdbench, and what runs them
    ("engine",),  # one cell on one device
    ("reports", "grid"),  # rows; many cells
    ("sweeps",),
    ("api", "cli", "__main__"),
)
ORDER = [entry for line in LAYERS for entry in line]
# Pairs of entries, where one imports the other, if only for types: among those that lie in kdbench/, and with
# the four linked folders. A new entry raises both by what it imports, here and in docs/architecture.md.
MOST_ARROWS, MOST_ARROWS_WITH_LINKED = 63, 94
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
KNOW_RAY = {"grid.cluster", "grid.with_ray", "sweeps.tune"}


# Where files for other programs lie, which no test would read otherwise.
SETTINGS = [*ROOT.glob("*.*"), *ROOT.glob(".*.yaml")]
SETTINGS += [
    path
    for folder in (".devcontainer", ".github", "docs", "reports/published")
    for path in (ROOT / folder).rglob("*")
]
PARSED = {".json": json.loads, ".toml": tomllib.loads, ".ipynb": json.loads}
PARSED |= dict.fromkeys((".yml", ".yaml", ".cff"), lambda text: [*yaml.compose_all(text)])


def modules() -> dict[str, Path]:
    """Name below kdbench -> file, of all modules but the one that is the package itself."""
    package = ROOT / "kdbench"
    files = [path for path in package.glob("*.py") if path.name != "__init__.py"]
    for folder in (*STAGES, *LINKED):
        files += (package / folder).rglob("*.py")
    return {".".join(path.relative_to(package).with_suffix("").parts): path for path in files}


MODULES = modules()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path, *, types: bool = True) -> set[str]:
    """What a module imports, at its top or in a function, with or without what only a type checker reads."""
    found = set()
    nodes: list[ast.AST] = [tree_of(path)]
    while nodes:
        node = nodes.pop()
        if not types and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
        nodes += ast.iter_child_nodes(node)
    return found


def own_imports(name: str, *, types: bool = True) -> set[str]:
    """The modules of kdbench that a module imports."""
    names = {other.removeprefix("kdbench.") for other in imports(MODULES[name], types=types)}
    return (names & MODULES.keys()) - {name}


def entry(name: str) -> str:
    return name.partition(".")[0]


def arrows() -> set[tuple[str, str]]:
    """Who imports whom among the entries of kdbench/."""
    pairs = {(entry(name), entry(other)) for name in MODULES for other in own_imports(name)}
    return {(one, other) for one, other in pairs if one != other}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("name", LINKED)
def test_the_four_folders_are_linked_and_have_no_init(name):
    link = ROOT / "kdbench" / name
    # An installed copy has plain folders where the checkout has links.
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert not (ROOT / name / "__init__.py").exists()


def test_every_entry_has_its_place_in_the_layers():
    assert {entry(name) for name in MODULES} == set(ORDER)
    assert len(ORDER) == len(set(ORDER))


def test_imports_go_one_way():
    backward = sorted(
        f"{name} imports {other}"
        for name in MODULES
        for other in own_imports(name)
        if ORDER.index(entry(other)) > ORDER.index(entry(name))
    )
    assert backward == []


def test_few_arrows_connect_the_entries():
    among_its_own = {pair for pair in arrows() if not set(pair) & set(LINKED)}
    assert len(among_its_own) <= MOST_ARROWS, sorted(among_its_own)
    assert len(arrows()) <= MOST_ARROWS_WITH_LINKED, sorted(arrows())


@pytest.mark.parametrize("folder", [*STAGES, *LINKED])
def test_no_modules_of_a_folder_import_one_another_in_a_circle(folder):
    graph = {name: own_imports(name, types=False) for name in MODULES if entry(name) == folder}
    inside = {name: {other for other in found if other in graph} for name, found in graph.items()}
    try:
        TopologicalSorter(inside).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' imports '.join(reversed(error.args[1]))}")


def test_only_three_modules_know_ray():
    with_ray = {
        name
        for name, path in MODULES.items()
        if "ray" in {n.partition(".")[0] for n in imports(path, types=False)}
    }
    assert with_ray <= KNOW_RAY


def test_reports_know_only_rows_and_plug_ins_know_only_their_contract():
    by_entry = {one: {other for first, other in arrows() if first == one} for one in ORDER}
    assert by_entry["reports"] <= {"errors", "files", "cell", "metrics", "results", "registry"}
    assert by_entry["datasets"] <= {"errors", "files", "machine", "picture", "dataset"}
    # A method may read pictures beside its training images, as all images are read: nothing is guessed at.
    assert by_entry["methods"] <= {"errors", "picture", "backbone", "method", "weights", "defects"}
    for name, path in MODULES.items():
        if entry(name) == "reports":
            assert not {n.partition(".")[0] for n in imports(path)} & {"torch", "timm", "torchvision"}, name


def test_no_module_and_no_function_is_too_long():
    long_modules = {name for name, path in MODULES.items() if len(path.read_text().splitlines()) > MOST_LINES}
    long_functions = {
        f"{name}.{function.name}"
        for name, path in MODULES.items()
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    }
    assert long_modules == set()
    assert long_functions == set()


def test_planning_does_not_load_torch():
    assert "torch" not in loaded_by("import kdbench.grid.request, kdbench.grid.status, kdbench.weights")


def loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_kdbench_loads_neither_torch_nor_ray_nor_pandas():
    loaded = loaded_by("import kdbench, kdbench.registry, kdbench.cli.app")
    assert not loaded & {"torch", "ray", "pandas", "timm", "scipy"}


def test_naming_methods_and_datasets_loads_next_to_nothing():
    loaded = loaded_by("import kdbench; kdbench.methods(), kdbench.datasets(), dir(kdbench)")
    assert not loaded & {"torch", "ray", "pandas", "timm", "scipy", "numpy", "pydantic", "rich"}


def test_a_bare_import_of_datasets_is_not_our_folder():
    code = "import sys; sys.path.insert(0, '')\nimport datasets\nprint(getattr(datasets, '__file__', None))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    # Without Hugging Face's package the name is an empty namespace; with it, it is theirs.
    assert str(ROOT / "datasets") not in done.stdout


def test_the_lock_names_versions_only():
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert lines
    for line in lines:
        name, equals, version = line.partition("==")
        assert equals, line
        assert name.replace("-", "").replace("_", "").replace(".", "").isalnum(), line
        assert version[0].isdigit(), line


@pytest.mark.parametrize(
    "path",
    [path for path in SETTINGS if path.suffix in PARSED],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_files_for_other_programs_can_be_read(path):
    assert PARSED[path.suffix](path.read_text(encoding="utf-8"))


def test_the_container_for_editors_installs_what_the_tests_need():
    found = json.loads((ROOT / ".devcontainer/devcontainer.json").read_text())
    assert "-e '.[dev]'" in found["postCreateCommand"]


@pytest.mark.parametrize("folder", ["cli", "grid"])
def test_public_signatures_have_real_types(folder):
    untyped = []
    for name in (name for name in MODULES if entry(name) == folder):
        for one in functions(MODULES[name]):
            arguments = [*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs]
            types = [ast.unparse(node) for node in [one.returns, *(a.annotation for a in arguments)] if node]
            if not one.name.startswith("_"):
                # A row is a dictionary of values of several types.
                untyped += [f"{name}.{one.name}: {t}" for t in types if "Any" in t.replace("[str, Any]", "")]
    assert untyped == []
