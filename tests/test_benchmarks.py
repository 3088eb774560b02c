"""What the benchmarks write: pages are what their kept measurements render to."""

import pytest
from benchmarks import peers_page


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
