"""The counts of a server as text for Prometheus: answers by status, decisions, quantiles of seconds."""

from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEDIA_TYPE = "text/plain; version=0.0.4"
QUANTILES = (0.5, 0.9, 0.99)
RECENT = 1000  # the quantiles are of so many durations
OTHER = "other"  # stands for all unknown paths: else a client could add lines without end


class Durations:
    """Durations in seconds: their number and sum, and the recent ones."""

    def __init__(self) -> None:
        self.count, self.sum = 0, 0.0
        self._recent: deque[float] = deque(maxlen=RECENT)

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.count += 1
        self.sum += seconds
        self._recent.append(seconds)

    def quantiles(self) -> list[float]:
        """QUANTILES of the recent durations; NaN without any, as usual in Prometheus."""
        if not self._recent:
            return [float("nan")] * len(QUANTILES)
        return [float(value) for value in np.quantile(self._recent, QUANTILES)]


class Monitor:
    """The numbers of a server since its start; for one thread only, that of the event loop."""

    def __init__(self, paths: Collection[str]) -> None:
        self.paths = paths
        self.answers: Counter[tuple[str, int]] = Counter()  # by path and status
        self.decisions: Counter[str] = Counter()
        self.requests, self.detector = Durations(), Durations()

    def answered(self, path: str, status: int) -> None:
        """Count an answer."""
        self.answers[path if path in self.paths else OTHER, status] += 1

    def scored(self, decision: str | None, request_s: float, detector_s: float) -> None:
        """Count an image that was scored, and how long its request and its detector took."""
        self.decisions[decision or "none"] += 1
        self.requests.add(request_s)
        self.detector.add(detector_s)

    def text(self, gauges: Mapping[str, float]) -> str:
        """All numbers as text; `gauges` are values of this moment, by name."""
        return "\n".join(self._lines(gauges)) + "\n"

    def _lines(self, gauges: Mapping[str, float]) -> Iterator[str]:
        yield from _head("kdbench_answers_total", "counter", "Answers, by path and status.")
        for (path, status), count in sorted(self.answers.items()):
            yield f'kdbench_answers_total{{path="{path}",status="{status}"}} {count}'
        yield from _head("kdbench_images_total", "counter", "Images that were scored, by decision.")
        for decision, count in sorted(self.decisions.items()):
            yield f'kdbench_images_total{{decision="{decision}"}} {count}'
        of = {"request": self.requests, "detector": self.detector}
        for name, durations in of.items():
            full = f"kdbench_{name}_seconds"
            yield from _head(full, "summary", f"Seconds of the {name} of a scored image, the last {RECENT}.")
            for quantile, value in zip(QUANTILES, durations.quantiles(), strict=True):
                yield f'{full}{{quantile="{quantile}"}} {value:.6g}'
            yield f"{full}_sum {durations.sum:.6f}"
            yield f"{full}_count {durations.count}"
        for name, value in gauges.items():
            yield from _head(f"kdbench_{name}", "gauge", f"{name.replace('_', ' ').capitalize()}.")
            yield f"kdbench_{name} {value:g}"


def _head(name: str, kind: str, what: str) -> Iterator[str]:
    yield f"# HELP {name} {what}"
    yield f"# TYPE {name} {kind}"


class Counted:
    """An ASGI application whose answers are counted."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self.app, self.monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass everything on, and count the answer."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.monitor.answered(scope["path"], message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counting)
        except Exception:  # it becomes an answer outside of here
            self.monitor.answered(scope["path"], 500)
            raise
