"""Three hosts, one is cut off and one loses its power in mid-run: the rows are those of a quiet run."""

import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from conftest import write_category
from hosts import Hosts, why_not

from kdbench.metrics.exact import METRICS
from kdbench.results.storage import Storage

pytestmark = pytest.mark.slow
NUM_SEEDS = 6


@pytest.fixture
def hosts(tmp_path):
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with Hosts(tmp_path) as made:
        yield made


def words(root: Path, results: Path, *more: str) -> list[str]:
    asked = ["run", "--methods", "stfpm", "--dataset", "mvtec_ad", "--root", str(root), "--backbone", "tiny"]
    asked += ["--epochs", "60", "--set", "all.image_size=32", "--set", "all.batch_size=4", "--no-latency"]
    asked += ["--seeds", ",".join(map(str, range(NUM_SEEDS))), "--cpus-per-cell", "1"]
    asked += ["--results", str(results), "--out", str(results.parent / "report"), *more]
    return [sys.executable, "-m", "kdbench", *asked]


def rows(results: Path) -> pd.DataFrame:
    columns = ["cell_id", "category", "status", *METRICS]
    found = pd.read_parquet(results / "cells")
    return found[columns].sort_values(columns[:2]).reset_index(drop=True)


def wait_for(count: int, results: Path, driver: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 240
    while len(list((results / "cells").glob("[!.]*.parquet"))) < count:
        assert driver.poll() is None, driver.stdout.read()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.2)


def test_a_cut_cable_and_a_dead_host_lose_nothing(hosts, tmp_path):
    root = tmp_path / "mvtec"
    for seed, name in enumerate(("bottle", "screw")):
        write_category(root, name, seed=seed + 1)
    quiet, results = tmp_path / "quiet/r", tmp_path / "shared/r"
    subprocess.run(words(root, quiet, "--executor", "local"), check=True, capture_output=True)
    for host in range(hosts.count):
        hosts.start_ray(host)
    more = ("--executor", "ray", "--address", hosts.head)
    driver = hosts.popen(
        0, words(root, results, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_for(2, results, driver)
    hosts.cut(1)
    hosts.kill(2)
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    assert len(rows(results)) == 2 * NUM_SEEDS
    pd.testing.assert_frame_equal(rows(results), rows(quiet), check_exact=True)
    storage = Storage(results)
    assert storage.names("leases") == []
    assert not [name for part in ("cells", "scores", "detectors") for name in storage.unfinished(part)]


def test_hosts_that_do_not_see_the_results_are_told_of_before_anything_runs(hosts, tmp_path):
    """Two hosts of three mount a folder of their own over the path of the results; all share a host name."""
    root, results = tmp_path / "mvtec", tmp_path / "local/r"
    write_category(root, "bottle", seed=1)
    results.parent.mkdir()
    hosts.start_ray(0)
    for host in (1, 2):
        hosts.start_ray(host, mounting=results.parent)
    more = ("--executor", "ray", "--address", hosts.head, "--categories", "bottle")
    driver = hosts.popen(
        0, words(root, results, *more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    said, _ = driver.communicate(timeout=240)
    assert driver.returncode == 2, said
    blind = f"does not see the results folder {results}; it must be on shared storage"
    assert all(f"({hosts.address(host)}): {blind}" in said for host in (1, 2))
    assert said.count(blind) == 2
    assert not list((results / "cells").glob("*.parquet"))
