"""Serve a reward over HTTP, with the standard library alone; a template for a server of your own.

    python examples/reward_server.py world_srpo                            # the reward of a recipe
    python examples/reward_server.py examples/black_box_reward.py:score    # a Python function
    directalign train remote_reward                                        # in another terminal

    POST /score {"prompts": ["Photo. a red star"], "images": ["<base64 of a PNG>"]}
    200 {"scores": [0.31]}; 400 for an unreadable request; 500 with the reason if the reward fails

It is the other end of `reward: {name: remote, url: ...}`, which repeats a failed request and then
stops the run. The server listens on this machine only. Anyone who reaches the port can use it: put
a proxy with authentication before it to serve other machines. Requests arrive in threads and are
scored one at a time.
"""

from __future__ import annotations

import argparse
import base64
import io
import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from directalign import config
from directalign.config.load import is_recipe, load_run
from directalign.rewards import load_reward

Score = Callable[[Tensor, list[str]], list[float]]
LARGEST = 256 * 2**20  # bytes of a request
MOST_PIXELS = 32 * 2**20  # of all images of a request; 400 MB in float32


def score_of(named: str, device: str) -> Score:
    """The reward of a recipe, or of file.py:function, as a function of images in [0, 1].

    Images are (b, 3, H, W); the function also takes b prompts.
    """
    settings = load_run(named).reward if is_recipe(named) else config.PythonConfig(path=named)
    reward, lock = load_reward(settings, device), threading.Lock()

    @torch.no_grad()
    def score(images: Tensor, prompts: list[str]) -> list[float]:
        with lock:
            return reward.score(reward.encode(images.to(device)), prompts).tolist()

    return score


def read_request(body: bytes) -> tuple[Tensor, list[str]]:
    """Images and prompts of a request. Raises ValueError for another content."""
    try:
        given = json.loads(body)
        prompts, pictures = given["prompts"], given["images"]
        texts = isinstance(prompts, list) and all(isinstance(each, str) for each in prompts)
        if not texts or not pictures or len(prompts) != len(pictures):
            raise ValueError("want as many prompts as images, at least one")
        # Only PNG: Pillow would start another program for some formats. Only headers are read.
        opened = [
            Image.open(io.BytesIO(base64.b64decode(each, validate=True)), formats=["PNG"])
            for each in pictures
        ]
        width, height = opened[0].size
        if {image.size for image in opened} != {(width, height)}:
            raise ValueError("want images of one size")
        if width * height * len(opened) > MOST_PIXELS:
            raise ValueError(f"want {MOST_PIXELS:,} pixels in all at most")
        pixels = [torch.from_numpy(np.array(image.convert("RGB"))) for image in opened]
    except Exception as error:  # decoders raise nearly anything
        raise ValueError(
            'want {"prompts": [...], "images": [base64 PNG, ...]} '
            f"({type(error).__name__}: {error})"
        ) from error
    return torch.stack(pixels).permute(0, 3, 1, 2).float().div_(255), prompts


def server_of(score: Score, port: int) -> ThreadingHTTPServer:
    """A server on this machine's `port` (0: any free one); `serve_forever` starts it."""

    reading = threading.Lock()  # one request is decoded at a time, as one is scored

    class Handler(BaseHTTPRequestHandler):
        timeout = 60  # seconds that a client may be silent

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "")
            known = length.isascii() and length.isdigit() and int(length[:20]) <= LARGEST
            if self.path != "/score" or not known:
                want = f"POST /score with a Content-Length from 0 to {LARGEST}"
                self.send(400, {"error": f"want {want}"})
                return self.drain()
            try:
                body = self.rfile.read(int(length))
                with reading:
                    images, prompts = read_request(body)
            except ValueError as error:
                return self.send(400, {"error": str(error)})
            try:
                self.send(200, {"scores": score(images, prompts)})
            except Exception as error:  # any error of the reward is sent to the client
                self.send(500, {"error": f"{type(error).__name__}: {error}"})

        def drain(self) -> None:
            """Read on for a while: closing at once could lose the answer on its way."""
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(1)
            with suppress(OSError):
                for _ in range(1000):
                    if not self.rfile.read1(2**16):
                        return

        def send(self, status: int, content: Mapping[str, object]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve a reward over HTTP.")
    parser.add_argument("reward", help="a recipe, or file.py:function")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    print(f"http://127.0.0.1:{args.port}/score", flush=True)
    server_of(score_of(args.reward, args.device), args.port).serve_forever()
