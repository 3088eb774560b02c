"""The layout of the repository, the direction of its imports, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINKED = ("methods", "datasets", "sweeps", "reports")
STAGES = ("metrics", "results", "data", "engine", "grid", "cli")

# Who may import whom, lowest first: a module imports only from its own line or from lines above it.
LAYERS = (
    ("errors", "engine.device", "grid.cluster"),
    ("metrics.exact", "metrics.legacy", "results.storage", "defects", "files"),
    ("metrics.presets", "metrics.curves"),
    ("cell",),
    ("results.schema",),
    ("results.store",),
    ("results.superseded",),
    ("results.prune", "weights", "dataset", "grid.lease", "engine.checkpoint"),
    ("backbone",),
    ("data.fingerprint",),
    ("method", "data.store", "data.audit", "datasets"),
    ("engine.features",),
    ("engine.batches",),
    ("methods", "registry", "engine.train"),
    ("engine.evaluate", "data.pictures", "engine.provenance", "engine.build"),
    ("engine.ready",),
    ("engine.run", "engine.probe", "grid.status"),
    (
        "grid.request",
        "grid.attempt",
        "cli.view",
        "data.check",
        "data.audit",
        "data.download",
        "engine.latency",
    ),
    ("reports",),
    ("grid.costs", "cli.doctor", "grid.prepare", "sweeps", "new_method"),
    ("grid.schedule", "cli.terminal"),
    ("cli.options",),
    ("cli.report", "cli.look", "cli.results"),
    ("cli.datasets",),
    ("cli.app",),
    ("__main__",),
)


def modules() -> list[Path]:
    files = [*(ROOT / "kdbench").glob("*.py")]
    for stage in STAGES:
        files += (ROOT / "kdbench" / stage).glob("[!_]*.py")
    for folder in LINKED:
        files += (ROOT / folder).rglob("*.py")
    return files


def part(path: Path) -> str:
    if path.parent.name == "kdbench":
        return path.stem
    if path.parent.parent.name == "kdbench":
        return f"{path.parent.name}.{path.stem}"
    return path.relative_to(ROOT).parts[0]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


def layer(name: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if name in names)


@pytest.mark.parametrize("name", LINKED)
def test_the_four_folders_are_linked_and_have_no_init(name):
    link = ROOT / "kdbench" / name
    # An installed copy has plain folders where the checkout has links.
    assert link.is_symlink()
    assert link.readlink() == Path("..") / name
    assert not (ROOT / name / "__init__.py").exists()


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_imports_go_one_way(path):
    own = part(path)
    if own == "__init__":
        return
    for name in imports(path):
        if not name.startswith("kdbench."):
            continue
        parts = name.split(".")[1:]
        if parts[0] in STAGES and len(parts) == 1:
            continue  # the package alone; what is imported from it is looked at by its own name
        other = ".".join(parts[:2]) if parts[0] in STAGES else parts[0]
        if other in ("__version__", own):
            continue
        assert layer(other) <= layer(own), f"{own} imports {other}"
        assert layer(other) < layer(own) or other == own, f"{own} imports {other}, which stands beside it"


@pytest.mark.parametrize("path", modules(), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_only_schedule_and_tune_know_ray_and_reports_know_only_rows(path):
    tops = {name.split(".")[0] for name in imports(path)}
    if path.name != "schedule.py" and path != ROOT / "sweeps/tune.py":
        assert "ray" not in tops
    if part(path) == "reports":
        assert not tops & {"torch", "timm", "torchvision"}
        assert not {
            n
            for n in imports(path)
            if n.startswith(("kdbench.engine.run", "kdbench.methods", "kdbench.engine.train"))
        }
    if part(path) in ("methods", "datasets"):
        other = {"methods": "kdbench.datasets", "datasets": "kdbench.methods"}[part(path)]
        assert not {n for n in imports(path) if n.startswith((other, "kdbench.reports", "kdbench.sweeps"))}


def loaded_by(code: str) -> set[str]:
    code += "\nimport sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_importing_kdbench_loads_neither_torch_nor_ray_nor_pandas():
    loaded = loaded_by("import kdbench, kdbench.registry, kdbench.cli.app")
    assert not loaded & {"torch", "ray", "pandas", "timm", "scipy"}


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
