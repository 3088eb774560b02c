"""At least so many faults over a grid of at least 40 cells; then the rows must be those of a quiet run.

    python tests/fault_campaign.py --faults 100 --out docs/fault-campaign.md

Needs Linux and the right to make network namespaces and to mount (root). Three hosts, each with a Ray node of
its own; a driver on host 0 runs the grid, faults strike, the driver is started again when it died, and so on.
When all cells have ended before all faults were struck, the next round begins with an empty results folder.
"""

import argparse
import os
import platform
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from conftest import write_category
from hosts import Hosts, why_not

from kdbench.grid.lease import holders
from kdbench.metrics.exact import METRICS
from kdbench.results.storage import Storage

CATEGORIES = ("bottle", "cable", "capsule", "screw")
NUM_SEEDS = 10
FAULTS_PER_ROUND = 34
CALM_S = 15.0  # no fault for so long, unless a cell ends: the grid shall move while it is struck
NUM_CELLS = len(CATEGORIES) * NUM_SEEDS
DISK_BYTES = 128 << 20  # a run refuses to begin with less than 64 MiB


def words(root: Path, results: Path, *more: str) -> list[str]:
    asked = ["run", "--methods", "stfpm", "--dataset", "mvtec_ad", "--root", str(root), "--backbone", "tiny"]
    asked += ["--epochs", "30", "--set", "all.image_size=32", "--set", "all.batch_size=4", "--no-latency"]
    asked += ["--seeds", ",".join(map(str, range(NUM_SEEDS))), "--cpus-per-cell", "1"]
    asked += ["--checkpoint-every", "0.005", "--redo", "failed"]
    asked += ["--results", str(results), "--out", str(results.parent / "report"), *more]
    return [sys.executable, "-m", "kdbench", *asked]


def rows(results: Path) -> pd.DataFrame:
    columns = ["cell_id", "category", "status", *METRICS]
    return pd.read_parquet(results / "cells")[columns].sort_values(columns[:2]).reset_index(drop=True)


class Campaign:
    """The hosts, the driver, and the faults that strike them."""

    def __init__(self, hosts: Hosts, root: Path, results: Path, seed: int) -> None:
        self.hosts, self.root, self.results, self.random = hosts, root, results, random.Random(seed)
        self.struck: Counter[str] = Counter()
        self.driver: subprocess.Popen[str] | None = None
        self.num_drivers = self.num_refused = self.num_ended = 0
        self.struck_at = 0.0

    def start_driver(self) -> None:
        more = ("--executor", "ray", "--address", self.hosts.head)
        log = (self.results.parent / "driver.log").open("a")
        self.driver = self.hosts.popen(0, words(self.root, self.results, *more), stdout=log, stderr=log)
        self.num_drivers += 1

    def strike(self) -> None:
        """One fault, chosen at random among those that can happen now; a healthy cluster afterwards."""
        faults: list[Callable[[], bool]] = [self.worker] * 8 + [self.driver_dies] * 2
        faults += [self.raylet, self.cable, self.head, self.disk_full]
        fault = self.random.choice(faults)
        if fault():
            self.struck[fault.__name__] += 1

    def worker(self) -> bool:
        """kill -9 a process that runs a cell."""
        pids = [
            p for h in range(self.hosts.count) for p, c in self.hosts.processes(h).items() if "run_one" in c
        ]
        return bool(pids) and _kill(self.random.choice(pids))

    def raylet(self) -> bool:
        """kill -9 the raylet of a host that is not the head; it is started again."""
        host = self.random.randrange(1, self.hosts.count)
        raylets = [p for p, c in self.hosts.processes(host).items() if "raylet/raylet" in c]
        if not raylets or not _kill(raylets[0]):
            return False
        self.hosts.kill(host)
        self.hosts.start_ray(host)
        return True

    def cable(self) -> bool:
        """Cut a host off, for longer than Ray waits for it or for less."""
        host = self.random.randrange(1, self.hosts.count)
        self.hosts.cut(host)
        time.sleep(self.random.choice((1.0, 8.0)))
        self.hosts.mend(host)
        if not any("raylet/raylet" in command for command in self.hosts.processes(host).values()):
            self.hosts.kill(host)  # its raylet gave up, as it should; an operator starts it again
            self.hosts.start_ray(host)
        return True

    def driver_dies(self) -> bool:
        """kill -9 the driver."""
        if self.driver is None or self.driver.poll() is not None:
            return False
        drivers = [p for p, c in self.hosts.processes(0).items() if "-m kdbench run" in c]
        return bool(drivers) and _kill(drivers[0])

    def head(self) -> bool:
        """kill -9 everything on host 0: the head, and the driver with it; the cluster is started again."""
        for host in range(self.hosts.count):
            self.hosts.kill(host)
        self.hosts.start_ray_everywhere()
        return True

    def disk_full(self) -> bool:
        """Nothing can be written on the results folder for a while."""
        filler = self.results.parent / "filler"
        try:
            with filler.open("wb") as file:
                while True:
                    file.write(bytes(1 << 16))
                    file.flush()
        except OSError:
            pass
        time.sleep(self.random.uniform(1, 4))
        filler.unlink()
        return True

    def round(self, num_faults: int) -> None:
        """Run the grid from nothing to its end, striking on the way, until it is complete."""
        while not self.complete():
            if self.driver is None or self.driver.poll() is not None:
                # 2: it found the disk full, or a node gone, before it began. An operator tries that again.
                refused = self.driver is not None and self.driver.poll() == 2
                self.num_refused = self.num_refused + 1 if refused else 0
                assert self.num_refused < 10, (self.results.parent / "driver.log").read_text()[-2000:]
                self.start_driver()
            if self.struck.total() < num_faults and self.due() and holders(Storage(self.results)):
                time.sleep(self.random.uniform(0, 2))  # so that it strikes a cell at any moment of its life
                self.strike()
                self.struck_at, self.num_ended = time.monotonic(), self.count()
            else:
                time.sleep(0.1)
        self.driver.wait()

    def due(self) -> bool:
        """Whether a cell has ended since the last fault, or so much time has passed that none will."""
        return self.count() > self.num_ended or time.monotonic() - self.struck_at > CALM_S

    def count(self) -> int:
        """Cells that have ended."""
        return len(list((self.results / "cells").glob("[!.]*.parquet")))

    def complete(self) -> bool:
        return self.count() == NUM_CELLS and self.driver is not None and self.driver.poll() == 0


def check(results: Path, quiet: Path) -> None:
    """The rows of a quiet run, bit for bit; nothing twice, nothing half-written, nobody's lease."""
    found, expected = rows(results), rows(quiet)
    assert not found.duplicated(["cell_id", "category"]).any()
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    ids = sorted(found["cell_id"])
    for part, suffix in (("scores", "parquet"), ("detectors", "safetensors")):
        assert [p.name for p in sorted((results / part).iterdir())] == [f"{i}.{suffix}" for i in ids], part
    assert Storage(results).names("leases") == Storage(results).names("checkpoints") == []
    assert not list(results.rglob("*.tmp"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the summary here too")
    asked = parser.parse_args()
    if reason := why_not():
        sys.exit(reason)
    struck: Counter[str] = Counter()
    started, num_rounds, num_drivers = time.monotonic(), 0, 0
    with tempfile.TemporaryDirectory(prefix="kdbench-faults") as temporary:
        folder = Path(temporary)
        for seed, name in enumerate(CATEGORIES):
            write_category(folder / "mvtec", name, seed=seed + 1)
        quiet = folder / "quiet/r"
        subprocess.run(words(folder / "mvtec", quiet, "--executor", "local"), check=True)
        while struck.total() < asked.faults:
            disk = folder / f"shared{num_rounds}"
            disk.mkdir()
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "kd", str(disk)], check=True)
            try:
                with Hosts(folder) as hosts:
                    hosts.start_ray_everywhere()
                    campaign = Campaign(hosts, folder / "mvtec", disk / "r", asked.seed + num_rounds)
                    campaign.round(min(FAULTS_PER_ROUND, asked.faults - struck.total()))
                check(disk / "r", quiet)
            finally:
                log = (disk / "driver.log").read_text()[-3000:] if (disk / "driver.log").exists() else ""
                subprocess.run(["umount", str(disk)], check=True)
            struck += campaign.struck
            num_rounds, num_drivers = num_rounds + 1, num_drivers + campaign.num_drivers
            print(f"round {num_rounds}: {dict(campaign.struck)}, {campaign.num_drivers} drivers", log[-300:])
    text = summary(struck, asked.faults, num_rounds, num_drivers, time.monotonic() - started)
    print(text)
    if asked.out:
        asked.out.write_text(text, encoding="utf-8")


def summary(struck: Counter[str], num_asked: int, num_rounds: int, num_drivers: int, seconds: float) -> str:
    """What was struck, in Markdown."""
    lines = [f"| {name.replace('_', ' ')} | {count} |" for name, count in sorted(struck.items())]
    machine = f"one machine of {os.cpu_count()} cores ({platform.system()})"
    return f"""# Fault campaign

Written by `python tests/fault_campaign.py --faults {num_asked} --out docs/fault-campaign.md`.
Three hosts as network namespaces on {machine}, {seconds / 60:.0f} minutes.

{struck.total()} faults in {num_rounds} rounds over a grid of {NUM_CELLS} cells; the same command was started
{num_drivers} times. After each round the rows equalled those of an undisturbed run bit for bit, no cell was
there twice, and no temporary file, lease or checkpoint was left.

| fault | times |
|---|---|
{chr(10).join(lines)}
"""


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


if __name__ == "__main__":
    main()
