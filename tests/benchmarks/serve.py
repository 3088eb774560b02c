"""`kdbench serve` under load on loopback: errors, images per second of a core, latency, growth of memory.

    python tests/benchmarks/serve.py [--clients 100] [--seconds 60] [--format openvino]

It exports STFPM with an untrained ResNet-18 of 64 pixels, starts the command, and has each client send one
image after another.
"""

import argparse
import asyncio
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2])]

import numpy as np
import psutil
import torch
from PIL import Image

from kdbench.backbone import pyramid
from kdbench.deploy.export import SUFFIXES, WRITERS, Traced
from kdbench.deploy.metadata import Metadata
from kdbench.engine.module import Deployed
from kdbench.registry import get_method

SIZE = 64
MIB = 2**20


def export(folder: Path, backbone: str, format: str) -> Path:
    """An untrained STFPM as a file of a format; it computes what a trained one computes."""
    kind = get_method("stfpm")
    config = kind.Config(backbone=backbone, image_size=SIZE)
    torch.manual_seed(0)
    method = kind(config, pyramid(backbone, config.levels))
    words = {"dataset": "none", "setting": "oneclass", "category": "none", "profile": "none"}
    metadata = Metadata(
        **words,
        **{"cell_id": "0" * 16, "method": "stfpm", "teacher_source": "random", "teacher_sha256": ""},
        **{"resize_rule": "", "seed": 0, "image_size": SIZE, "categories": ("none",)},
        **{"config": {}, "licences": {}, "trained_with": {}, "versions": {}},
    )
    path = folder / f"stfpm{SUFFIXES[format]}"
    module = Deployed(method)
    WRITERS[format](Traced(module, module.image_size), path, metadata.text())
    return path


@dataclass
class Server:
    """A process of `kdbench serve`."""

    process: subprocess.Popen[str]
    port: int

    @property
    def memory(self) -> int:
        """Resident bytes."""
        return psutil.Process(self.process.pid).memory_info().rss

    @property
    def cpu_seconds(self) -> float:
        """Of all its threads."""
        times = psutil.Process(self.process.pid).cpu_times()
        return times.user + times.system

    def stop(self) -> tuple[int, str]:
        """Ask it to stop; its exit code and what it printed."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=60)
        return self.process.returncode, printed


@contextmanager
def served(path: Path, *words: str) -> Iterator[Server]:
    """A server of an exported detector that is ready; it is killed if it still runs at the end."""
    command = [sys.executable, "-u", "-m", "kdbench", "serve", str(path), "--port", "0", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=Path(__file__).parents[2], **pipes) as process:
        try:
            said = ""
            while not (found := re.search(r"http://127\.0\.0\.1:(\d+)", said)):
                line = process.stdout.readline()
                if not line:
                    raise RuntimeError(f"no server: {said}")
                said += line
            yield Server(process, int(found[1]))
        finally:
            process.kill()


@dataclass
class Load:
    """What clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    bodies: set[bytes] = field(default_factory=set)  # without milliseconds


def picture(size: int = 128) -> bytes:
    """A noisy photograph as JPEG."""
    pixels = np.random.default_rng(0).integers(0, 256, (size, size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG")
    return stream.getvalue()


def post(content: bytes) -> bytes:
    """A request with an image."""
    head = f"POST /predict HTTP/1.1\r\nHost: server\r\nContent-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer; IncompleteReadError if the connection ends before."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = int(re.search(r"content-length: (\d+)", head)[1])
    return int(head.split(" ", 2)[1]), await reader.readexactly(length)


async def load(port: int, clients: int, seconds: float) -> Load:
    """Clients that each send an image as soon as the last one was answered."""
    found, until, request = Load(), time.perf_counter() + seconds, post(picture())

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < until:
            writer.write(request)
            status, body = await read_answer(reader)
            found.seconds.append(time.perf_counter() - started)
            found.statuses[status] += 1
            found.bodies.add(re.sub(rb',"milliseconds":[^,}]*', b"", body))
        writer.close()

    await asyncio.gather(*(client() for _ in range(clients)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--format", choices=SUFFIXES, default="openvino")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = export(Path(folder), "resnet18.tv_in1k", asked.format)
        with served(path) as server:
            asyncio.run(load(server.port, asked.clients, 3))
            memory, cpu, started = server.memory, server.cpu_seconds, time.perf_counter()
            found = asyncio.run(load(server.port, asked.clients, asked.seconds))
            took, used = time.perf_counter() - started, server.cpu_seconds - cpu
            growth, count = server.memory - memory, len(found.seconds)
            code, _ = server.stop()
    quantiles = " ".join(f"{1000 * value:.0f}" for value in np.quantile(found.seconds, (0.5, 0.9, 0.99)))
    print(f"{asked.format}: {asked.clients} clients, {took:.0f} s, answers by status {dict(found.statuses)}")
    print(
        f"{count / took:.0f} images/s; {count / used:.0f} per second of a core; {used / took:.2f} cores used"
    )
    print(f"ms of a client, p50 p90 p99: {quantiles}; load of the machine {os.getloadavg()[0]:.1f}")
    print(
        f"memory {memory / MIB:.0f} MiB, growth {growth / MIB:.1f}; {len(found.bodies)} different answer(s)"
    )
    print(f"exit code {code}")


if __name__ == "__main__":
    main()
