"""The benchmarks: pages are what their kept measurements render to, and an older commit can be measured."""

import subprocess
import sys

import pytest
from benchmarks import against, peers_page


def test_the_page_of_the_peers_is_what_its_measurements_render_to():
    assert peers_page.page(peers_page.ROWS) == peers_page.OUT.read_text(encoding="utf-8")


FOUND = {
    "machine": "4 cores of Some (R) Processor with AVX2",
    "day": "2026-01-31",
    "precision": "fp32",
    "category": "bottle",
    **{"num_train": 209, "num_test": 83, "size": 256, "batch": 32, "epochs": 20, "workers": 4},
    "largest_difference": [0.5, 1.25],
    "versions": {"anomalib": "2.7.0", "torch": "2.15.0"},
    "work": [{"what": 'an "epoch"', "ratio": 1.5, "lowest": 1.25, "highest": 2.0, "pairs": 3}],
    "accuracy": [{"seed": 0, "kdbench": [99.5, 98.0], "anomalib": [99.0, 96.75]}],
}


def test_a_measurement_replaces_the_section_of_its_machine_and_leaves_others(tmp_path):
    other = FOUND | {"machine": "2 cores of Other with AVX2"}
    path = peers_page.write_rows(tmp_path, FOUND)
    peers_page.write_rows(tmp_path, other)
    assert path.name == "4-cores-of-some-r-processor-with-avx2.toml"
    assert peers_page.page(tmp_path) == peers_page.HEAD + peers_page.section(other) + peers_page.section(
        FOUND
    )
    newer = FOUND | {"day": "2026-02-01"}
    assert peers_page.write_rows(tmp_path, newer) == path
    assert peers_page.page(tmp_path) == peers_page.HEAD + peers_page.section(other) + peers_page.section(
        newer
    )


@pytest.mark.parametrize(
    "line",
    [
        "## 4 cores of Some (R) Processor with AVX2",
        "2026-01-31: anomalib 2.7.0, torch 2.15.0.",
        '| an "epoch" | **1.50** | 1.25 to 2.00 | 3 |',
        "| 0 | 99.50 / 98.00 | 99.00 / 96.75 |",
        "Largest difference: 0.50 points of image AUROC, 1.25 of pixel AUROC.",
    ],
)
def test_a_section_says_what_was_measured(line):
    assert line in peers_page.section(FOUND).splitlines()


def test_the_ratio_to_an_older_commit_is_that_of_medians():
    sides = against.Sides(
        method="stfpm", before=[0.2, 0.4, 0.3], now=[0.1, 0.1, 0.2], losses=[("0x1p0", "0x1p0")] * 4
    )
    assert sides.row() == "| stfpm | 300.0 | 100.0 | **3.000** | 1.500 to 4.000 | 3 | the same |"
    sides.losses[-1] = ("0x1p0", "0x1p1")
    assert sides.row().endswith("| 3 | others |")


@pytest.mark.slow
def test_a_commit_is_checked_out_measured_and_removed():
    if not (against.ROOT / ".git").exists():
        pytest.skip("not a checkout")
    words = ["HEAD", "--methods", "stfpm,rd4ad", "--size", "32", "--images", "4", "--rounds", "1"]
    script = against.ROOT / "tests/benchmarks/against.py"
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [(row[0], row[5], row[6]) for row in rows] == [
        ("| stfpm", "1", "the same |"),
        ("| rd4ad", "1", "the same |"),
    ]
    listed = subprocess.run(
        ["git", "-C", against.ROOT, "worktree", "list"], capture_output=True, text=True, check=True
    )
    assert "kdbench-" not in listed.stdout
