"""A service on a real port, within the process of the test."""

import threading
import time
from contextlib import contextmanager

import uvicorn

from bpfree.serve.server import address_of, listen


@contextmanager
def serving(app):
    """The address of a service that runs in a thread."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield address_of(listening)
        finally:
            server.should_exit = True
            thread.join(20)
