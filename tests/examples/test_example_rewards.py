"""The example rewards: a black box, a template, and a server that refuses what it cannot read."""

import base64
import importlib.util
import io
import json
import socket
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from directalign import config
from directalign.rewards import load_reward
from rewards.black_boxes import PROMPTS, images, means, running
from rewards.cases import refused, scores_of

EXAMPLES = Path(__file__).parents[2] / "examples"


def example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_black_box_example_scores_the_image_after_jpeg():
    settings = config.PythonConfig(path=f"{EXAMPLES}/black_box_reward.py:score")
    smooth = F.interpolate(images()[..., :4, :4], size=(64, 64), mode="bicubic").clamp(0, 1)
    prompts = ["a red star on a navy background", "Realistic photo. a blue ring", "a star"]
    found, plain = (
        scores_of(load_reward(each), smooth, prompts)
        for each in (settings, config.ClipConfig(path="world:reward"))
    )
    torch.testing.assert_close(found, plain, rtol=0, atol=0.05)
    assert not found.equal(plain)
    through_jpeg = example("black_box_reward").through_jpeg
    flat, noise = torch.full((3, 64, 64), 0.5), torch.rand(3, 64, 64)
    assert (through_jpeg(flat) - flat).abs().max() < 0.01
    assert (through_jpeg(noise) - noise).abs().mean() > 0.05


def test_the_template_is_a_differentiable_reward():
    path, given = EXAMPLES / "my_reward.py", images().requires_grad_()
    args = {"target": 0.25}
    reward = load_reward(
        config.PythonConfig(path=f"{path}:MyReward", differentiable=True, args=args)
    )
    scores = scores_of(reward, given, PROMPTS)
    torch.testing.assert_close(scores, -((means(given) - 0.25) ** 2))
    (gradient,) = torch.autograd.grad(scores.sum(), given)
    assert gradient.abs().max() > 0 and not reward.reads_prompt
    plain = load_reward(config.PythonConfig(path=f"{path}:contrast"))
    torch.testing.assert_close(plain.score(images(), PROMPTS), images().flatten(1).std(1))


def reward_at(url: str) -> Any:
    return load_reward(config.HttpConfig(url=url, retries=0))


def test_the_example_server_serves_the_reward_of_a_recipe():
    server = example("reward_server")
    here = load_reward(config.ClipConfig(path="world:reward"))
    with running(server.server_of(server.score_of("world_srpo", "cpu"), 0)) as url:
        assert url.startswith("http://127.0.0.1:")  # no other machine reaches it
        found = scores_of(reward_at(url), images(), PROMPTS)
    expected = scores_of(here, (images() * 255).round() / 255, PROMPTS)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_example_server_serves_a_function_and_reports_errors(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def score(images, prompts):\n    if 'bad' in prompts: raise RuntimeError('no model')\n"
        "    return images.mean((1, 2, 3))\n"
    )
    server = example("reward_server")
    with running(server.server_of(server.score_of(f"{tmp_path}/mine.py:score", "cpu"), 0)) as url:
        reward = reward_at(url)
        torch.testing.assert_close(
            scores_of(reward, images(), PROMPTS), means(images()), rtol=0, atol=2e-3
        )
        with refused(r"HTTP 500 .*RuntimeError: no model"):
            scores_of(reward, images(), ["bad"] * 3)
        with refused(r"HTTP 400 .*want POST /score"):
            scores_of(reward_at(url.replace("/score", "/else")), images(), PROMPTS)
        with refused(r"HTTP 400 .*want .*prompts"):
            reward.score(("no picture",) * 3, PROMPTS)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def request_of(*pictures: bytes, prompts: Any = ("x",)) -> bytes:
    texts = [base64.b64encode(each).decode() for each in pictures]
    return json.dumps({"prompts": prompts, "images": texts}).encode()


def png_of_size(width: int, height: int) -> bytes:
    """A small PNG that claims to have this size."""
    whole = bytearray(encoded(Image.new("RGB", (8, 8))))
    whole[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
    whole[29:33] = zlib.crc32(whole[12:29]).to_bytes(4, "big")
    return bytes(whole)


RED = Image.new("RGB", (64, 64), "red")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"
HOSTILE = {
    "cut": request_of(encoded(RED)[:-40]),
    "damaged": request_of(encoded(RED)[:60] + b"\0\1" + encoded(RED)[62:]),
    "large": request_of(png_of_size(20_000, 20_000)),
    "many": request_of(*[png_of_size(2_000, 2_000)] * 9, prompts=["x"] * 9),
    "program": request_of(EPS),
    **{kind: request_of(encoded(RED, kind)) for kind in ("JPEG", "GIF")},
    "two sizes": request_of(encoded(RED), encoded(RED.resize((8, 8))), prompts=["x", "y"]),
    "deep": b"[" * 100_000,
    "no object": b"[]",
    "no list": request_of(encoded(RED), prompts={"x": 1}),
    "no text": request_of(encoded(RED), prompts=[1]),
    "no prompt": request_of(encoded(RED), prompts=[]),
    "nothing": b"",
}
LENGTHS_REFUSED = ["-1", "abc", "", "1e3", "+5", "9" * 30, "\u0663", str(256 * 2**20 + 1)]


def test_the_example_server_refuses_what_it_cannot_read(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    server = example("reward_server")
    with running(server.server_of(lambda images, prompts: [0.5] * len(prompts), 0)) as url:
        port = int(url.split(":")[2].split("/")[0])

        def status(body: bytes, length: str) -> bytes:
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                head = f"POST /score HTTP/1.1\r\nContent-Length: {length}\r\n\r\n"
                client.sendall(head.encode() + body)
                return client.recv(1000).split(b" ")[1]

        good = request_of(encoded(RED))
        found = {name: status(body, str(len(body))) for name, body in HOSTILE.items()}
        found |= {f"length {each}": status(good, each) for each in LENGTHS_REFUSED}
        assert set(found.values()) == {b"400"}, found
        assert status(good, str(len(good))) == b"200"
