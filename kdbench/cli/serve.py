"""`kdbench serve`: serve a detector over HTTP."""

import signal
import socket
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kdbench import __version__
from kdbench.cli.deploy import DecideBy, DetectorName, predictor_of
from kdbench.cli.options import Device, Results, Weights
from kdbench.cli.terminal import note, say
from kdbench.errors import RequestError, reason
from kdbench.grid.stopping import GRACE_S, Stop, stop_on_signals

if TYPE_CHECKING:
    from fastapi import FastAPI

PACKAGES = {"fastapi": "fastapi", "python_multipart": "python-multipart", "uvicorn": "uvicorn"}  # by module
ANSWER_S = int(GRACE_S) - 5  # for running requests; then the process still has to end
LOCAL = ("127.0.0.1", "::1", "localhost")


def serve(
    detector: DetectorName,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = LOCAL[0],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port to listen on; 0: any that is free.")
    ] = 8000,
    max_bytes: Annotated[int, typer.Option(min=1, help="Largest body of a request.")] = 16 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pixels of the largest image.")] = 50_000_000,
    queue: Annotated[int, typer.Option(min=1, help="Requests at a time; more get 503.")] = 128,
    threshold: DecideBy = None,
    results: Results = "results",
    weights: Weights = None,
    device: Device = "auto",
) -> None:
    """Answer POST /predict with score, decision and map of the image; Ctrl-C or SIGTERM stops."""
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise RequestError([f'kdbench serve needs {", ".join(missing)}: pip install "kdbench[serve]"'])
    from kdbench.deploy.serve import Limits, create_app

    limits = Limits(max_bytes=max_bytes, max_pixels=max_pixels, queue=queue)
    predictor = predictor_of(detector, threshold, results, weights, device)
    app = create_app(predictor, {"detector": Path(detector).name, "kdbench": __version__}, limits)
    with listening(host, port) as sock, stop_on_signals() as stop, stop.patience():
        shown = f"[{host}]" if ":" in host else host
        say(f"serving {detector} on http://{shown}:{sock.getsockname()[1]} until Ctrl-C")
        if host not in LOCAL:
            note("whoever reaches this address can use the server: it asks for no password")
        _serve(app, sock, stop)
    if stop.asked_by:
        say(f"stopped by {signal.Signals(stop.asked_by).name}")
        raise typer.Exit(128 + stop.asked_by)


def listening(host: str, port: int) -> socket.socket:
    """A socket at this address; RequestError if it is in use, or belongs to another machine."""
    try:
        return socket.create_server((host, port), family=socket.getaddrinfo(host, port)[0][0])
    except (OSError, OverflowError) as error:
        raise RequestError([f"cannot listen on {host}, port {port}: {reason(error)}"]) from error


def _serve(app: "FastAPI", sock: socket.socket, stop: Stop) -> None:
    """Serve until somebody asks to stop; running requests then have ANSWER_S."""
    import uvicorn

    async def look() -> None:  # every second: uvicorn itself minds SIGINT and SIGTERM only
        server.should_exit = server.should_exit or bool(stop.asked_by)

    server = uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",  # it limits the size of headers
            ws="none",
            access_log=False,
            log_level="warning",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=ANSWER_S,
            callback_notify=look,
            timeout_notify=1,
        )
    )
    server.run(sockets=[sock])
