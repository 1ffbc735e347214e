"""Images, prompts and servers for rewards of one's own code."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from torch import Tensor

PROMPTS = ["a", "bcd", "ef"]
Answer = Callable[[dict[str, Any]], tuple[int, bytes]]


def images() -> Tensor:
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def means(given: Tensor) -> Tensor:
    return given.mean((1, 2, 3))


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[str]:
    """Where a server answers, until the block ends."""
    with server:
        handler: Any = server.RequestHandlerClass
        handler.log_message = lambda *_: None
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/score"
        server.shutdown()


def failing(status: int, text: str = "", cut: bool = False) -> Answer:
    """`cut`: the body is longer than what is sent."""
    return lambda given: (status, text.encode() + (b"\0" if cut else b""))


@contextmanager
def served(*answers: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(address, requests) of a server that gives each response once, then repeats the last.

    The requests are their JSON with their "Authorization".
    """
    requests: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            given = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            requests.append(given | {"Authorization": self.headers["Authorization"]})
            status, body = answers[min(len(requests), len(answers)) - 1](given)
            self.send_response(status, "of\x1b[2J tests")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "http://127.0.0.1:1/")
            self.end_headers()
            self.wfile.write(body.removesuffix(b"\0"))

    with running(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as url:
        yield url, requests
