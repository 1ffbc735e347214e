"""Two gloo processes on a CPU: own prompts, averaged gradients, identical finite weights, one set of files."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing

from directalign import config


def work(rank: int, port: int, folder: str, run: config.RunConfig) -> None:
    import train_stubs as stubs

    from directalign.training.distributed import process_group

    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE="2",
        LOCAL_RANK=str(rank),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    torch.set_num_threads(1)
    with process_group() as ranks:
        gradient = torch.nn.Parameter(torch.zeros(1))
        gradient.grad = torch.full((1,), float(rank))
        ranks.average_gradients([gradient])
        seen = [float(gradient.grad), ranks.any(rank == 1), float(ranks.sum(torch.ones(1)))]
        out = Path(folder) / "out"
        if ranks.is_main:
            out.mkdir()
        ranks.barrier()
        family = stubs.StubModel(full=True)
        if rank == 1:
            torch.nn.init.zeros_(family.denoiser.base)
        stubs.train_loaded(run, out, False, ranks, stubs.load(run, family, ranks))
        torch.save(
            {"weights": family.denoiser.base.detach(), "seen": seen},
            Path(folder) / f"result-{rank}.pt",
        )


def test_two_processes_end_with_the_same_finite_weights(tmp_path: Path):
    import train_stubs as stubs

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    run = stubs.make_run(tmp_path / "prompts.txt", num_steps=3, batch_size=1)
    sys.stdout.flush()
    multiprocessing.start_processes(work, (port, str(tmp_path), run), nprocs=2, start_method="fork")

    first, second = (
        torch.load(tmp_path / f"result-{rank}.pt", weights_only=True) for rank in range(2)
    )
    assert torch.equal(first["weights"], second["weights"]) and bool(
        first["weights"].isfinite().all()
    )
    assert first["seen"] == second["seen"] == [0.5, True, 2.0]
    checkpoint = tmp_path / "out" / "checkpoints" / "step-000003"
    assert {"rank-0.pt", "rank-1.pt"} <= {file.name for file in checkpoint.iterdir()}
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 3 + 3
    alone = stubs.start(run, tmp_path / "alone")
    assert not torch.equal(alone.denoiser.base, first["weights"])
