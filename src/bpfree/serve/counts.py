"""The numbers that the service counts about itself, in the format of Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Counts:
    """Counters of one service. They are not global: a program may have two services."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "bpfree_requests",
            "Requests by route, method and status.",
            ["route", "method", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "bpfree_request_seconds", "Seconds from a request to its answer.", ["route"], registry=self.registry
        )
        self._samples = Histogram(
            "bpfree_batch_samples",
            "Samples that a net computed at once.",
            ["run"],
            buckets=_SIZES,
            registry=self.registry,
        )
        self._batches = Histogram(
            "bpfree_batch_seconds", "Seconds that a net took for a batch.", ["run"], registry=self.registry
        )

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count a request and its seconds.

        Args:
            route: the pattern of its address, and not the address, which anybody chooses.
            method: the method of HTTP.
            status: the status code of the answer.
            seconds: from the request to the answer.
        """
        self._requests.labels(route, method if method in _METHODS else "other", str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, run: str, samples: int, seconds: float) -> None:
        """Count a batch of samples.

        Args:
            run: the name of the run.
            samples: the number of samples.
            seconds: how long the net took.
        """
        self._samples.labels(run).observe(samples)
        self._batches.labels(run).observe(seconds)

    def text(self) -> bytes:
        """Return all numbers in the text format of Prometheus."""
        return generate_latest(self.registry)


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"})
