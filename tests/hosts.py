"""Several real hosts on one machine: network namespaces joined by a bridge, each with its own Ray node."""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# A cut cable is noticed within seconds and not within half a minute.
QUICK = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
PORT = 6379


def why_not() -> str:
    """Why hosts cannot be made here; "" if they can."""
    if sys.platform != "linux" or shutil.which("ip") is None:
        return "needs Linux with `ip` (Debian's iproute2)"
    name = f"kdtry{os.getpid()}"
    if subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False).returncode:
        return "making network namespaces is not allowed here"
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return ""


NUMBERS = itertools.count()  # the kernel takes a moment to forget the names of a deleted one


class Hosts:
    """Hosts 0 to `count` - 1; host 0 is Ray's head. A context manager that leaves nothing behind."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.folder, self.count, self.number = folder, count, next(NUMBERS)
        self.tag = f"k{os.getpid() % 100000}x{self.number % 100}"  # names of links have at most 15 characters
        self.temporary = Path(tempfile.mkdtemp(prefix="kd"))  # short: Unix sockets have short paths
        self.started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Hosts":
        _ip("link", "add", self.tag, "type", "bridge")
        _ip("link", "set", self.tag, "up")
        for host in range(self.count):
            name, outside = self.name(host), f"{self.tag}v{host}"
            _ip("netns", "add", name)
            _ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", outside, "master", self.tag, "up")
            for words in (
                ["addr", "add", f"{self.address(host)}/24", "dev", "eth0"],
                ["link", "set", "eth0", "up"],
            ):
                _ip("-n", name, *words)
            _ip("-n", name, "link", "set", "lo", "up")
        return self

    def __exit__(self, *error: object) -> None:
        for host in range(self.count):
            self.kill(host)
            _ip("netns", "delete", self.name(host))
        for process in self.started:  # a test that failed has not waited for them
            process.communicate()
        _ip("link", "delete", self.tag)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def name(self, host: int) -> str:
        return f"{self.tag}n{host}"

    def address(self, host: int) -> str:
        return f"10.{77 + self.number % 100}.{os.getpid() % 200}.{host + 1}"

    @property
    def head(self) -> str:
        return f"{self.address(0)}:{PORT}"

    def start_ray(self, host: int, num_cpus: int = 1, mounting: Path | None = None) -> None:
        """`ray start` on a host, as docs/cluster.md says; `mounting` hides a folder behind one of its own."""
        words = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats"]
        words += ["--node-ip-address", self.address(host), "--num-cpus", str(num_cpus)]
        words += ["--object-store-memory", str(80 << 20)]
        if host == 0:
            words += ["--head", "--port", str(PORT), "--include-dashboard=false"]
            words += ["--temp-dir", str(self.temporary / "ray")]
        else:
            words += ["--address", self.head]
        if mounting:
            script = 'mount -t tmpfs own "$0" && exec "$@"'
            words = ["unshare", "--mount", "sh", "-c", script, str(mounting), *words]
        for _ in range(3):  # on a busy machine Ray may give up waiting for its own processes
            done = self.popen(host, words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            said, _ = done.communicate(timeout=180)
            if done.returncode == 0:
                return
            self.kill(host)
        raise RuntimeError(f"Ray does not start on host {host}: {said}")

    def start_ray_everywhere(self) -> None:
        """The head, then the others."""
        for host in range(self.count):
            self.start_ray(host)

    def popen(self, host: int, words: list[str], **options: Any) -> "subprocess.Popen[str]":
        """Start a program on a host, with the host's own folder for local files."""
        own = {"KDBENCH_CACHE": str(self.folder / f"local{host}"), "PYTHONPATH": os.pathsep.join(sys.path)}
        own |= {"OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "disabled", **QUICK}
        environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"} | own
        inside = ["ip", "netns", "exec", self.name(host), *words]
        process = subprocess.Popen(inside, env=environment, start_new_session=True, **options)
        self.started.append(process)
        return process

    def processes(self, host: int) -> dict[int, str]:
        """Process -> command line of everything that runs on a host."""
        listed = subprocess.run(
            ["ip", "netns", "pids", self.name(host)], capture_output=True, text=True, check=True
        )
        return {int(pid): _command(int(pid)) for pid in listed.stdout.split()}

    def kill(self, host: int) -> None:
        """SIGKILL to everything on a host, until nothing is left: it lost its power."""
        while pids := self.processes(host):
            for pid in pids:
                _kill(pid)

    def cut(self, host: int) -> None:
        """Pull the host's cable."""
        _ip("link", "set", f"{self.tag}v{host}", "down")

    def mend(self, host: int) -> None:
        """Put the cable back."""
        _ip("link", "set", f"{self.tag}v{host}", "up")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
