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
import binascii
import io
import json
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from directalign import config
from directalign.config.load import is_recipe, load_run
from directalign.rewards import load_reward

Score = Callable[[Tensor, list[str]], list[float]]
LARGEST = 256 * 2**20  # bytes of a request


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
        decoded = [
            Image.open(io.BytesIO(base64.b64decode(each, validate=True))).convert("RGB")
            for each in given["images"]
        ]
    except (KeyError, TypeError, ValueError, binascii.Error, UnidentifiedImageError) as error:
        raise ValueError(
            'want {"prompts": [...], "images": [base64 PNG, ...]} '
            f"({type(error).__name__}: {error})"
        ) from error
    prompts = given.get("prompts")
    if not (
        decoded
        and isinstance(prompts, list)
        and len(prompts) == len(decoded)
        and len({image.size for image in decoded}) == 1
    ):
        raise ValueError("want as many prompts as images, at least one, and images of one size")
    return torch.stack(
        [torch.from_numpy(np.array(each)).permute(2, 0, 1).float() / 255 for each in decoded]
    ), prompts


def server_of(score: Score, port: int) -> ThreadingHTTPServer:
    """A server on this machine's `port` (0: any free one); `serve_forever` starts it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            if self.path != "/score" or length > LARGEST:
                return self.send(400, {"error": f"want POST /score of at most {LARGEST} bytes"})
            try:
                images, prompts = read_request(self.rfile.read(length))
            except ValueError as error:
                return self.send(400, {"error": str(error)})
            try:
                self.send(200, {"scores": score(images, prompts)})
            except Exception as error:  # any error of the reward is sent to the client
                self.send(500, {"error": f"{type(error).__name__}: {error}"})

        def send(self, status: int, content: Mapping[str, object]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
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
