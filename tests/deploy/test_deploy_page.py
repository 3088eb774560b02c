"""docs/deploy.md: every command runs, in its order, on drawn images, and prints what the page says."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from conftest import write_image

from kdbench.results.store import CELLS, read

pytest.importorskip("openvino", reason="needs the extra deploy")
PAGE = Path(__file__).parents[2] / "docs/deploy.md"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CELL = re.compile(r"stfpm-synthetic-wood-([0-9a-f]{8})")
DIFFERS = re.compile(r"-?\d[\d.]*(?:e-?\d+)?|\bnormal\b(?=\")|\banomalous\b(?=\")|\s+")
LESS = "--epochs 1 --set all.image_size=64 --executor local"  # than the page: the lines are the same
GOES_ON = {"--watch": "images scored", "kdbench serve": "serving"}  # until Ctrl-C, and says this first


def alike(text: str) -> set[str]:
    """The lines of a text, without what another run prints in another way."""
    return {DIFFERS.sub("", CELL.sub("", line)) for line in text.splitlines()}


@contextmanager
def running(command: str, said: str, **place: object) -> Iterator[None]:
    """A command that goes on, from the moment when it has said something."""
    started = {"shell": True, "stdout": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **started, **place) as process:
        try:
            assert any(said in line for line in process.stdout), command
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)


@pytest.mark.slow
def test_every_command_of_the_page_runs_and_prints_what_the_page_shows(tmp_path):
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    for name in (f"{folder}/{i}.png" for folder in ("photographs", "line", "camera") for i in range(3)):
        write_image(tmp_path / name, len(name))
    write_image(tmp_path / "one.jpg", 9)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    place = {"cwd": tmp_path, "env": {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}}
    text = PAGE.read_text(encoding="utf-8")
    (shown,), own = {*CELL.findall(text)}, ""
    blocks = BLOCK.findall(text)
    for (kind, content), (shows, promised) in zip(blocks, [*blocks[1:], ("", "")], strict=True):
        if kind != "sh":
            continue
        printed = ""
        with ExitStack() as until_the_end_of_the_block:
            for line in content.replace("\\\n", " ").splitlines():
                command = line.replace(shown, own).replace(":8000", f":{port}")
                command = re.sub("kdbench (run .*)", rf"kdbench \1 {LESS}", command)
                command = re.sub("kdbench serve", f"kdbench serve --port {port}", command)
                if command.startswith("pip install"):
                    continue
                if said := next((said for what, said in GOES_ON.items() if what in line), ""):
                    until_the_end_of_the_block.enter_context(running(command, said, **place))
                    continue
                ended = subprocess.run(
                    command, shell=True, capture_output=True, text=True, check=False, **place
                )
                assert ended.returncode == 0, f"{command}\n{ended.stdout}{ended.stderr}"
                printed += f"{ended.stdout}\n"
                rows = read(str(tmp_path / "results"), CELLS).to_pylist()
                (own,) = {row["cell_id"][:8] for row in rows if row["method"] == "stfpm"}
        if shows in ("text", "json"):
            assert alike(promised) <= alike(printed), printed
