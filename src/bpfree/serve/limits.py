"""Limits of the service, and the errors of requests that exceed them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """The most that one request may ask for, and how requests are put together to batches.

    Args:
        body_bytes: the size of the body of a request.
        samples: the number of samples in a request.
        seconds: the time from the start of a request to its answer.
        waiting: the number of samples of all requests to one run that wait for their turn.
        batch: the number of samples that the net computes at once.
        collect_seconds: how long the first request of a batch waits for others.
    """

    body_bytes: int = 8 << 20
    samples: int = 1000
    seconds: float = 30.0
    waiting: int = 4000
    batch: int = 256
    collect_seconds: float = 0.004


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: the status code of HTTP.
        message: what is wrong, and the cure.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
