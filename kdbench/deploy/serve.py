"""A server for one detector: a client posts an image and gets its score, decision and map.

All requests share one thread that decodes and scores: memory is bounded, and no detector has to be safe for
threads. The event loop only reads and writes. The server keeps nothing of an image.
"""

import asyncio
import io
import json
import math
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, Response
from PIL import Image
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.requests import ClientDisconnect

from kdbench.deploy.monitor import MEDIA_TYPE, Counted, Monitor
from kdbench.deploy.predict import Predictor, Scored, heat_map
from kdbench.errors import DataError, first_line, unknown
from kdbench.files import Content
from kdbench.picture import open_image, opened

# Formats of cameras. Pillow allocates the canvas of a WebP or a GIF already when it opens the file.
FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
# Of a JPEG; a progressive one has ten. Each scan is a pass over all pixels, and may take only 80 bytes.
MOST_SCANS = 100
START_OF_SCAN = b"\xff\xda"
JSON, MAP, HEAT_MAP = "json", "map", "heat_map"
OUTPUTS = (JSON, MAP, HEAT_MAP)
FIELD = "image"  # of a form
FORM, PNG = "multipart/form-data", "image/png"
WHITE = 65535  # of a PNG with 16 bit
UNDECIDED = (
    "the detector has no threshold: `kdbench export` stores one, `kdbench serve --threshold` gives one"
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of requests to the server."""

    max_bytes: int = 16 * 2**20  # of the body of a request
    max_pixels: int = 50_000_000
    queue: int = 128  # requests that are read, wait or are scored at a time
    body_seconds: float = 30.0  # the body of a request must come within so many seconds


def create_app(predictor: Predictor, about: Mapping[str, str], limits: Limits | None = None) -> FastAPI:
    """The server of a detector: POST /predict, GET /health, GET /metrics; no pages for people.

    /health shows the facts in `about`. The detector scores a black image first: one that cannot run raises
    its error here.
    """
    predictor.scored(Image.new("RGB", (1, 1)), "a black image")
    service = _Service(predictor, limits or Limits())

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        service.worker.shutdown(wait=False, cancel_futures=True)

    app = FastAPI(title="kdbench", openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Counted, monitor=service.monitor)
    app.post("/predict")(service.predict)

    @app.get("/health")
    async def health() -> JSONResponse:
        facts = {"image_size": predictor.image_size, "threshold": predictor.threshold}
        return JSONResponse({"status": "ok", **about, **facts})

    @app.get("/metrics")
    async def metrics() -> Response:
        gauges = {"requests_in_progress": service.in_progress, "requests_limit": service.limits.queue}
        return Response(service.monitor.text(gauges), media_type=MEDIA_TYPE)

    return app


class _Service:
    """The queue in front of a detector."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.monitor = Monitor(("/predict", "/health", "/metrics"))
        self.worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="detector")
        self.in_progress = 0

    async def predict(self, request: Request) -> Response:
        """Score the image of a request; HTTPException if the request is refused."""
        started = time.perf_counter()
        output, boundary = _output(request), _boundary(request)
        self._check_length(request)
        if self.in_progress >= self.limits.queue:
            raise HTTPException(503, "too many requests wait", {"Retry-After": str(self._seconds_of_queue())})
        self.in_progress += 1
        try:
            body = await self._body(request)
            work = asyncio.get_running_loop().run_in_executor(
                self.worker, self._answer, body, boundary, output
            )
            scored, answer = await work
        finally:
            self.in_progress -= 1
        self.monitor.scored(scored.decision, time.perf_counter() - started, scored.milliseconds / 1000)
        return answer

    def _seconds_of_queue(self) -> int:
        """Seconds until the queue may be done, by the median time of recent images; at least 1."""
        median = self.monitor.detector.quantiles()[0]
        return 1 if math.isnan(median) else max(1, math.ceil(median * self.in_progress))

    def _check_length(self, request: Request) -> None:
        """Refuse a body whose header declares too many bytes, before any of it is read."""
        declared = request.headers.get("content-length", "0")
        if not (declared.isascii() and declared.isdecimal()):
            raise HTTPException(400, "Content-Length is no number")
        if len(declared) > 20 or int(declared) > self.limits.max_bytes:
            raise self._too_long()

    def _too_long(self) -> HTTPException:
        return HTTPException(413, f"the body has more than {self.limits.max_bytes:,} bytes")

    async def _body(self, request: Request) -> bytes:
        """The body, never more of it than is allowed."""
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > self.limits.max_bytes:
                        raise self._too_long()
        except TimeoutError:
            raise HTTPException(408, f"the body took over {self.limits.body_seconds:g} s") from None
        except ClientDisconnect:
            raise HTTPException(400, "the body ends early") from None
        if len(body) != int(request.headers.get("content-length", len(body))):
            raise HTTPException(400, f"the body has {len(body)} bytes, Content-Length says another number")
        if not body:
            raise HTTPException(400, f"there is no body: send an image, or a form with the file {FIELD!r}")
        return bytes(body)

    def _answer(self, body: bytes, boundary: bytes | None, output: str) -> tuple[Scored, Response]:
        """Decode, score and draw, in the worker's thread."""
        content = Content(body if boundary is None else _file_of_form(body, boundary), "the image")
        try:
            self._check_image(content)
            picture = open_image(content).image
            scored = self.predictor.scored(picture, str(content))
        except DataError as error:
            raise HTTPException(422, str(error)) from error
        if output == JSON:
            return scored, JSONResponse(self._facts(scored))
        if output == HEAT_MAP:
            drawn = heat_map(picture, scored.anomaly_map, self.predictor.scale)
            return scored, _png(drawn, self._facts(scored))
        values = scored.anomaly_map.astype(np.float64)
        low, high = float(values.min()), float(values.max())
        grey = ((values - low) * (WHITE / ((high - low) or 1.0))).round().astype(np.uint16)
        return scored, _png(Image.fromarray(grey), self._facts(scored) | {"map_low": low, "map_high": high})

    def _facts(self, scored: Scored) -> dict[str, float | str | None]:
        return {
            "score": scored.score,
            "decision": scored.decision,
            "threshold": self.predictor.threshold,
            "undecided_because": UNDECIDED if scored.decision is None else None,
            "milliseconds": scored.milliseconds,
        }

    def _check_image(self, content: Content) -> None:
        """Refuse an image by its header and its scans, before any pixel is decoded."""
        with opened(content, "an image", FORMATS) as file:
            if file.width * file.height > self.limits.max_pixels:
                size = f"{file.width}x{file.height} pixels"
                raise HTTPException(413, f"the image has {size}, more than {self.limits.max_pixels:,}")
            # Counting the pages may take minutes.
            if file.format == "TIFF" and getattr(file, "is_animated", False):
                raise HTTPException(422, "the image has several pages: send the page that is meant")
            scans = content.data.count(START_OF_SCAN) if file.format in ("JPEG", "MPO") else 0
            if scans > MOST_SCANS:
                raise HTTPException(422, f"the image has {scans} scans, more than {MOST_SCANS}")


def _output(request: Request) -> str:
    """The output that ?output= asks for, else Accept."""
    wants_png = request.headers.get("accept", "").lower().startswith(PNG)
    output = request.query_params.get("output", MAP if wants_png else JSON)
    if output not in OUTPUTS:
        raise HTTPException(400, unknown("output", output[:40], OUTPUTS))
    return output


def _boundary(request: Request) -> bytes | None:
    """The boundary between the parts of a form; None if the body is the image."""
    kind, options = parse_options_header(request.headers.get("content-type") or PNG)
    media_type = kind.decode("latin-1")
    if media_type == FORM:
        if not options.get(b"boundary"):
            raise HTTPException(400, "the form has no boundary")
        return options[b"boundary"]
    if media_type != "application/octet-stream" and not media_type.startswith("image/"):
        taken = f"{FORM}, image/* and application/octet-stream"
        raise HTTPException(415, f"Content-Type {media_type[:80]!r} is not accepted. Accepted: {taken}")
    return None


def _file_of_form(body: bytes, boundary: bytes) -> bytes:
    """The one file of a form; HTTPException at the first part that is something else."""
    found: list[bytes] = []

    def on_field(field: Field) -> None:
        raise HTTPException(400, f"the form has a part that is no file: it takes one file, {FIELD!r}")

    def on_file(file: File) -> None:
        if found or file.field_name != FIELD.encode():
            raise HTTPException(400, f"the form has another file: it takes one, {FIELD!r}")
        file.file_object.seek(0)
        found.append(file.file_object.read())

    settings = {"MAX_MEMORY_FILE_SIZE": len(body), "UPLOAD_ERROR_ON_BAD_CTE": True}  # nothing on the disk
    try:
        parser = FormParser(FORM, on_field, on_file, boundary=boundary, config=settings)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise HTTPException(400, f"the form is damaged: {first_line(error)}") from error
    if not found:
        raise HTTPException(400, f"the form has no file {FIELD!r}, or ends early")
    return found[0]


def _png(image: Image.Image, facts: Mapping[str, float | str | None]) -> Response:
    """A PNG, with the facts in headers."""
    stream = io.BytesIO()
    image.save(stream, "PNG")
    headers = {f"Kdbench-{name.replace('_', '-')}": json.dumps(value) for name, value in facts.items()}
    return Response(stream.getvalue(), media_type=PNG, headers=headers)
