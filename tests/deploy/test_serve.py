"""The server of a detector: it answers as `predict` does, refuses hostile requests, and stays as it was."""

import asyncio
import io
import json
import signal
import struct
import threading
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from benchmarks.serve import MIB, Server, export, load, picture, post, read_answer, served
from fastapi.testclient import TestClient
from PIL import Image

from kdbench.cli.deploy import predictor_of
from kdbench.cli.serve import listening
from kdbench.deploy.metadata import Scale
from kdbench.deploy.predict import Found, Predictor, predict
from kdbench.deploy.serve import FIELD, MOST_SCANS, UNDECIDED, Limits, create_app
from kdbench.errors import RequestError

SIZE = 16
THRESHOLD = 100.0
LIMITS = Limits(max_bytes=60_000, max_pixels=10_000, queue=4, body_seconds=0.2)
CLOSED = b"closed"  # a connection, without an answer
ABOUT = {"detector": "bright.onnx"}


class Bright:
    """A detector that takes bright pixels for defects."""

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = images.astype(np.float32).mean(-1) + np.linspace(0, 1, SIZE, dtype=np.float32)
        return maps, maps.max((1, 2))


def predictor(threshold: float | None = THRESHOLD) -> Predictor:
    scale = Scale(low=0.0, high=100.0)
    return Predictor(scorer=Bright(), image_size=SIZE, threshold=threshold, scale=scale)


@pytest.fixture
def client() -> Iterator[TestClient]:
    with TestClient(create_app(predictor(), ABOUT, LIMITS), raise_server_exceptions=False) as client:
        yield client


def encoded(
    format: str = "PNG", size: tuple[int, int] = (40, 30), value: int = 90, **options: object
) -> bytes:
    pixels = np.random.default_rng(0).integers(value, value + 60, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


PIXELS = encoded()


def by_predict(
    content: bytes, folder: Path, given: Predictor | None = None
) -> tuple[float, str | None, np.ndarray]:
    """Score, decision and map of the command `predict`."""
    path = folder / "image.png"
    path.write_bytes(content)
    (found,) = predict(given or predictor(), [Found(path=path, name="image.png")], folder / "out")
    assert found.error is None
    return found.score, found.decision, np.asarray(Image.open(folder / "out" / found.map))


@pytest.mark.parametrize("format", ["PNG", "JPEG", "BMP", "TIFF"])
def test_an_image_gets_the_score_of_predict(client, tmp_path, format):
    content = encoded(format)
    score, decision, _ = by_predict(content, tmp_path)
    raw = client.post("/predict", content=content)
    form = client.post("/predict", files={FIELD: ("a.png", content)})
    for answer in (raw, form):
        assert answer.status_code == 200
        facts = answer.json()
        assert facts.pop("milliseconds") > 0
        assert facts == {
            "score": score,
            "decision": decision,
            "threshold": THRESHOLD,
            "undecided_because": None,
        }
    assert decision == "anomalous"
    dark = client.post("/predict", content=encoded(format, value=10)).json()
    assert dark["decision"] == "normal"


def test_without_a_threshold_nothing_is_decided_and_the_answer_says_why():
    client = TestClient(create_app(predictor(None), ABOUT))
    answer = client.post("/predict", content=PIXELS).json()
    assert (answer["decision"], answer["threshold"]) == (None, None)
    assert answer["undecided_because"] == UNDECIDED
    assert client.get("/health").json()["threshold"] is None


@pytest.mark.parametrize(
    ("query", "headers"),
    [("?output=map", {}), ("", {"Accept": "image/png"}), ("", {"Accept": "image/png, */*"})],
)
def test_the_png_is_the_map(client, tmp_path, query, headers):
    score, decision, anomaly_map = by_predict(PIXELS, tmp_path)
    answer = client.post(f"/predict{query}", content=PIXELS, headers=headers)
    assert answer.headers["content-type"] == "image/png"
    image = Image.open(io.BytesIO(answer.content))
    assert (image.format, image.size) == ("PNG", (SIZE, SIZE))
    said = {
        name: json.loads(answer.headers[f"kdbench-{name}"])
        for name in ("score", "decision", "map-low", "map-high")
    }
    assert (said["score"], said["decision"]) == (score, decision)
    assert (said["map-low"], said["map-high"]) == (anomaly_map.min(), anomaly_map.max())
    values = said["map-low"] + np.asarray(image) * (said["map-high"] - said["map-low"]) / 65535
    assert np.abs(values - anomaly_map).max() <= 0.51 * (said["map-high"] - said["map-low"]) / 65535


def test_the_heat_map_is_that_of_predict(client, tmp_path):
    by_predict(PIXELS, tmp_path)
    answer = client.post("/predict?output=heat_map", content=PIXELS, headers={"Accept": "application/json"})
    ours = np.asarray(Image.open(io.BytesIO(answer.content)))
    assert (ours == np.asarray(Image.open(tmp_path / "out/heat_maps/image.png.png"))).all()


def png(width: int, height: int, data: bytes = b"", bits: int = 8) -> bytes:
    """A PNG with these numbers in its header, whatever its data."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


def animation(format: str) -> bytes:
    stream = io.BytesIO()
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue", "green")]
    frames[0].save(stream, format, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG whose last scan comes again and again: each is a pass over all of its pixels."""
    content = encoded("JPEG", progressive=True)
    last = content[content.rindex(b"\xff\xda") : -2]
    return content[:-2] + last * MOST_SCANS + content[-2:]


def form(*parts: tuple[str, str, bytes], boundary: str = "b", end: bool = True) -> dict[str, object]:
    """A form of parts (name, filename, content)."""
    body = b"".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, file, content in parts
    )
    headers = {"Content-Type": f"multipart/form-data; boundary={boundary}"}
    return {"content": body + (f"--{boundary}--\r\n".encode() if end else b""), "headers": headers}


def nested(depth: int) -> bytes:
    """Forms in forms."""
    content = PIXELS
    for level in range(depth):
        content = form(("image", "a.png", content), boundary=f"b{level}")["content"]
    return content


def chunks() -> Iterator[bytes]:
    for _ in range(100):
        yield b"x" * 1000


def kind(content_type: str, content: bytes) -> dict[str, object]:
    return {"content": content, "headers": {"Content-Type": content_type}}


def long(value: str, content: bytes = PIXELS) -> dict[str, object]:
    return {"content": content, "headers": {"Content-Length": value}}


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>'
BROKEN_EXIF = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12\0\x03\xff\xff\xff\xff"
HOSTILE = {
    "empty body": ({"content": b""}, 400, "there is no body"),
    "text named as PNG": (kind("image/png", b"no image"), 422, "it begins with b'no image'"),
    "truncated PNG": ({"content": PIXELS[: len(PIXELS) // 2]}, 422, "cannot be read as an image"),
    "truncated JPEG": ({"content": encoded("JPEG")[:-400]}, 422, "Truncated File Read"),
    "bomb of 30000x30000": ({"content": png(30_000, 30_000, b"\0" * 10**6)}, 413, "30000x30000 pixels"),
    "over max-pixels": ({"content": encoded("JPEG", (101, 100))}, 413, "101x100 pixels, more than 10,000"),
    "huge Content-Length": (long("99999999999999"), 413, "more than 60,000 bytes"),
    "Content-Length without end": (long("9" * 5000), 413, "more than 60,000 bytes"),
    "Content-Length that lies": (long("7"), 400, "Content-Length says another number"),
    "Content-Length that is no number": (long("1e3"), 400, "no number"),
    "over max-bytes in chunks": ({"content": chunks()}, 413, "more than 60,000 bytes"),
    "SVG": (kind("image/svg+xml", SVG), 422, "it is a web page or XML"),
    "GIF animation": ({"content": animation("GIF")}, 422, "no kind of image that is known here"),
    "PNG animation": ({"content": animation("PNG")}, 422, "3 pages"),
    "TIFF of several pages": ({"content": animation("TIFF")}, 422, "several pages"),
    "WebP": ({"content": encoded("WEBP")}, 422, "no kind of image"),
    "JPEG of many scans": ({"content": many_scans()}, 422, "scans, more than 100"),
    "PDF": (kind("application/octet-stream", b"%PDF-1.7\n%%EOF"), 422, "it is a PDF"),
    "image without pixels": ({"content": png(0, 0)}, 422, "cannot be read as an image"),
    "JSON": (kind("application/json", b'{"image": "a.png"}'), 415, "'application/json' is not accepted"),
    "another field": (form(("photo", "a.png", PIXELS)), 400, "takes one, 'image'"),
    "two files": (form(("image", "a.png", PIXELS), ("image", "b.png", PIXELS)), 400, "takes one, 'image'"),
    "a field that is no file": (
        {"data": {"note": "x"}, "files": {FIELD: ("a.png", PIXELS)}},
        400,
        "a part that is no file",
    ),
    "a form without boundary": (kind("multipart/form-data", PIXELS), 400, "no boundary"),
    "a form without end": (form(("image", "a.png", PIXELS), end=False), 400, "or ends early"),
    "forms in forms": (kind("multipart/form-data; boundary=b49", nested(50)), 422, "no kind of image"),
    "forms in a form of another boundary": (
        kind("multipart/form-data; boundary=x", nested(50)),
        400,
        "damaged",
    ),
    "an encoding that does not exist": (
        kind(
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n'
            b"Content-Transfer-Encoding: zip\r\n\r\nx\r\n--b--\r\n",
        ),
        400,
        "damaged",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_hostile_is_refused_and_changes_nothing(client, name):
    before = client.post("/predict", content=PIXELS).json()["score"]
    health = client.get("/health").json()
    given, status, said = HOSTILE[name]
    answer = client.post("/predict", **given)
    assert (answer.status_code, said in answer.json()["detail"]) == (status, True), answer.text
    assert client.get("/health").json() == health
    assert client.post("/predict", content=PIXELS).json()["score"] == before
    numbers = client.get("/metrics").text
    assert f'kdbench_answers_total{{path="/predict",status="{status}"}} 1\n' in numbers
    assert "kdbench_requests_in_progress 0\n" in numbers


VALID = {
    "1x1": {"content": encoded(size=(1, 1))},
    "a path as its name": form(("image", "../../../etc/passwd", PIXELS)),
    "a name of zeros and lines": {"files": {FIELD: ("a\0b\r\nc.png", PIXELS)}},
    "no type": {"content": PIXELS, "headers": {"Content-Type": ""}},
    "EXIF that is damaged": {"content": encoded("JPEG", exif=BROKEN_EXIF)},
}


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")  # as where nobody makes errors of them
@pytest.mark.parametrize("name", VALID)
def test_what_is_odd_but_valid_gets_the_score_of_its_pixels(client, tmp_path, name):
    given = VALID[name]
    image = given["content"] if name in ("1x1", "EXIF that is damaged") else PIXELS
    answer = client.post("/predict", **given)
    assert answer.status_code == 200, answer.text
    assert answer.json()["score"] == by_predict(image, tmp_path)[0]
    assert not list(Path.cwd().glob("passwd"))


def test_there_is_nothing_but_three_paths(client):
    assert client.put("/predict", content=PIXELS).status_code == 405
    assert client.get("/predict").status_code == 405
    for path in ("/", "/docs", "/redoc", "/openapi.json", "/predict/../health2"):
        assert client.get(path).status_code == 404
    answer = client.post("/predict?output=pickle", content=PIXELS)
    assert (answer.status_code, "no output 'pickle'" in answer.json()["detail"]) == (400, True)
    assert client.get("/health").json() == {
        "status": "ok",
        **ABOUT,
        "image_size": SIZE,
        "threshold": THRESHOLD,
    }
    numbers = client.get("/metrics").text
    assert 'kdbench_answers_total{path="other",status="404"} 5\n' in numbers
    assert 'kdbench_answers_total{path="/predict",status="405"} 2\n' in numbers


def test_metrics_count_images_and_seconds(client):
    for value in (90, 10, 10):
        client.post("/predict", content=encoded(value=value))
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = [line for line in answer.text.splitlines() if not line.startswith("#")]
    numbers = {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}
    assert numbers['kdbench_images_total{decision="anomalous"}'] == 1
    assert numbers['kdbench_images_total{decision="normal"}'] == 2
    assert numbers['kdbench_answers_total{path="/predict",status="200"}'] == 3
    assert (numbers["kdbench_requests_in_progress"], numbers["kdbench_requests_limit"]) == (0, 4)
    for name in ("request", "detector"):
        low, high = (numbers[f'kdbench_{name}_seconds{{quantile="{q}"}}'] for q in ("0.5", "0.99"))
        assert 0 < low <= high <= numbers[f"kdbench_{name}_seconds_sum"]
        assert numbers[f"kdbench_{name}_seconds_count"] == 3
    assert numbers["kdbench_detector_seconds_sum"] < numbers["kdbench_request_seconds_sum"]


class Held(Bright):
    """It waits until it is let go."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.go.set()

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        assert self.go.wait(10)
        return super().run(images)


async def fill_the_queue(held: Held) -> None:
    app = create_app(Predictor(scorer=held, image_size=SIZE, threshold=None, scale=None), ABOUT, LIMITS)
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        held.go.clear()
        running = [asyncio.create_task(client.post("/predict", content=PIXELS)) for _ in range(LIMITS.queue)]
        async with asyncio.timeout(10):
            while "in_progress 4\n" not in (await client.get("/metrics")).text:  # the loop is free meanwhile
                await asyncio.sleep(0)
        refused = await client.post("/predict", content=PIXELS)
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        held.go.set()
        assert [(await one).status_code for one in running] == [200] * LIMITS.queue
        assert (await client.post("/predict", content=PIXELS)).status_code == 200


def test_more_requests_than_the_queue_holds_get_503_and_a_time():
    asyncio.run(fill_the_queue(Held()))


def test_a_body_that_does_not_come_is_given_up(client):
    async def trickle() -> AsyncIterator[bytes]:
        yield PIXELS[:10]
        await asyncio.sleep(60)

    async def call() -> httpx.Response:
        transport = httpx.ASGITransport(client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as slow:
            return await slow.post("/predict", content=trickle())

    answer = asyncio.run(call())
    assert (answer.status_code, answer.json()["detail"]) == (408, "the body took over 0.2 s")
    assert "in_progress 0\n" in client.get("/metrics").text


def test_a_client_that_hangs_up_leaves_no_request(client):
    async def call() -> list[int]:
        sent: list[int] = []
        came = iter(
            [
                {"type": "http.request", "body": PIXELS[:10], "more_body": True},
                {"type": "http.disconnect"},
            ]
        )

        async def receive() -> dict[str, object]:
            return next(came)

        async def send(message: dict[str, object]) -> None:
            sent.append(message.get("status", 0))

        scope = {
            **{"type": "http", "method": "POST", "path": "/predict", "query_string": b"", "headers": []},
            **{"http_version": "1.1", "scheme": "http", "server": ("server", 80), "root_path": ""},
        }
        await client.app(scope, receive, send)
        return sent

    assert asyncio.run(call())[0] == 400
    assert "in_progress 0\n" in client.get("/metrics").text


class Failing(Bright):
    """It fails for bright images, and gives no number for dark ones."""

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if images.min() >= 90:
            raise RuntimeError("out of memory at /home/somebody")
        maps, scores = super().run(images)
        return maps, scores * (np.nan if images.max() else 1)


def test_a_detector_that_fails_is_500_without_words_and_the_server_goes_on():
    given = Predictor(scorer=Failing(), image_size=SIZE, threshold=None, scale=None)
    client = TestClient(create_app(given, ABOUT), raise_server_exceptions=False)
    answer = client.post("/predict", content=PIXELS)
    assert (answer.status_code, answer.text) == (500, "Internal Server Error")
    answer = client.post("/predict", content=encoded(value=10))
    assert (answer.status_code, answer.json()["detail"][:27]) == (422, "the image: its score is nan")
    assert client.post("/predict", content=png(2, 2, b"\0" * 14)).status_code == 200
    assert 'path="/predict",status="500"} 1\n' in client.get("/metrics").text


def test_a_detector_that_cannot_run_is_no_server():
    class Broken(Bright):
        def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            raise RuntimeError("no such kernel")

    with pytest.raises(RuntimeError, match="no such kernel"):
        create_app(Predictor(scorer=Broken(), image_size=SIZE, threshold=None, scale=None), ABOUT)


def test_packages_that_are_missing_are_named_with_their_extra(kdbench, monkeypatch):
    monkeypatch.setattr("kdbench.cli.serve.find_spec", lambda name: None if name != "fastapi" else name)
    code, printed = kdbench("serve", "detector.onnx")
    wanted = 'error: kdbench serve needs python-multipart, uvicorn: pip install "kdbench[serve]"\n'
    assert (code, printed) == (2, wanted)


def test_an_address_that_is_taken_or_not_of_this_machine_is_named():
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestError, match=f"cannot listen on 127.0.0.1, port {port}: Address already"):
            listening("127.0.0.1", port)
    with pytest.raises(RequestError, match=r"cannot listen on 192\.0\.2\.1, port 80: "):
        listening("192.0.2.1", 80)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("served"), "tiny", "torch")


async def finish_after_the_signal(server: Server, num: int) -> list[tuple[int, bytes]]:
    """Answers of requests whose first half comes before SIGTERM and whose second half comes after it."""
    request = post(picture())
    ends = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(num)]
    for _, writer in ends:
        writer.write(request[:-100])
    async with httpx.AsyncClient() as client, asyncio.timeout(30):
        while (
            f"in_progress {num}\n" not in (await client.get(f"http://127.0.0.1:{server.port}/metrics")).text
        ):
            await asyncio.sleep(0.01)
    server.process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(30):
        while True:  # until nobody listens any more
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except ConnectionRefusedError:
                break
            writer.close()
            await asyncio.sleep(0.01)
    for _, writer in ends:
        writer.write(request[-100:])
    answers = [await read_answer(reader) for reader, _ in ends]
    for _, writer in ends:
        writer.close()
    return answers


@pytest.mark.slow
def test_100_clients_get_one_answer_and_a_signal_lets_running_requests_finish(file, tmp_path):
    with served(file) as server:
        asyncio.run(load(server.port, 100, 1))
        memory = server.memory
        found = asyncio.run(load(server.port, 100, 5))
        assert set(found.statuses) == {200}
        assert found.statuses[200] >= 100  # each client, however busy the machine is
        assert {json.loads(body)["score"] for body in found.bodies} == {
            by_predict(picture(), tmp_path, predictor_of(str(file), None, "", None, "cpu"))[0]
        }
        assert server.memory - memory < 32 * MIB
        answers = asyncio.run(finish_after_the_signal(server, 20))
        assert [status for status, _ in answers] == [200] * 20
        printed, _ = server.process.communicate(timeout=30)
        assert server.process.returncode == 128 + signal.SIGTERM
        assert printed.splitlines()[-1] == "stopped by SIGTERM"


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_stop_it_too(file, number):
    with served(file) as server:
        server.process.send_signal(number)
        printed, _ = server.process.communicate(timeout=30)
        assert (server.process.returncode, f"stopped by {number.name}" in printed) == (128 + number, True)


@pytest.mark.slow
def test_hostile_bytes_on_a_real_connection(file):
    """What no client of a library sends: lengths that lie, two lengths, headers without end."""

    async def send(port: int, content: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(content)
        writer.write_eof()
        found = CLOSED
        with suppress(ConnectionResetError):  # after what was refused and not read
            async with asyncio.timeout(10):
                found = await reader.read()
        writer.close()
        return found[:13] or CLOSED

    start = b"POST /predict HTTP/1.1\r\nHost: s\r\n"
    with served(file, "--max-bytes", "5000") as server:
        for content in (
            start + b"Content-Length: 10\r\nContent-Length: 11\r\n\r\n0123456789",
            start + b"Content-Length: -1\r\n\r\n",
            start + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n",
            start + b"X: " + b"x" * 200_000 + b"\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01",  # TLS
        ):
            assert asyncio.run(send(server.port, content)) in (b"HTTP/1.1 400 ", CLOSED)
        assert asyncio.run(send(server.port, start + b"Content-Length: 100\r\n\r\nshort")) in (
            b"HTTP/1.1 400 ",
            CLOSED,
        )
        huge = start + b"Content-Length: 9000000000\r\n\r\n"
        assert asyncio.run(send(server.port, huge)) == b"HTTP/1.1 413 "
        chunked = start + b"Transfer-Encoding: chunked\r\n\r\n" + b"1000\r\n" + b"x" * 4096 + b"\r\n"
        chunked += b"1000\r\n" + b"x" * 4096 + b"\r\n0\r\n\r\n"
        assert asyncio.run(send(server.port, chunked)) == b"HTTP/1.1 413 "
        assert httpx.get(f"http://127.0.0.1:{server.port}/health").json()["status"] == "ok"
