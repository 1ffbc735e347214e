"""Who this process is: what torchrun, srun, a batch script and a plain shell say."""

from __future__ import annotations

import pytest

from directalign.train.launch import FIRST_PORT, Launch, first_host, launched
from directalign.types import DirectAlignError

TORCHRUN = {"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SLURM = {"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "70012", "SLURM_STEP_NODELIST": "gpu[07-08]"}


def test_a_plain_shell_is_alone():
    assert launched({}) == launched({"WORLD_SIZE": "1", "RANK": "0"}) == Launch()


def test_torchrun_says_all_and_comes_before_slurm():
    wanted = Launch(9, 16, 1, "node1", 29500)
    assert launched(TORCHRUN) == launched(SLURM | TORCHRUN) == wanted
    agent = launched(TORCHRUN | {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2"})
    assert agent == Launch(9, 16, 1, "node1", 29500, is_hosted=True, attempt=2)


def test_srun_is_read_from_the_step():
    assert launched(SLURM) == Launch(5, 8, 1, "gpu07", FIRST_PORT + 10012)
    assert launched(SLURM | {"SLURM_STEP_ID": "3", "MASTER_ADDR": "10.0.0.1"}) == Launch(5, 8, 1, "10.0.0.1", FIRST_PORT + 10015)
    assert launched(SLURM | {"MASTER_PORT": "1234"}).port == 1234


def test_a_batch_script_and_a_step_of_one_task_are_alone():
    script = {"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}
    assert launched(script) == launched(SLURM | {"SLURM_STEP_NUM_TASKS": "1"}) == launched(SLURM | {"WORLD_SIZE": "1"}) == Launch()


@pytest.mark.parametrize(
    ("nodes", "first"),
    [("gpu-a,gpu-b", "gpu-a"), ("gpu-a", "gpu-a"), ("n[07-09,12],gpu", "n07"), ("n[3,5]", "n3"), ("r1n[01-04].lab,x", "r1n01.lab"), ("a,b[1-2]", "a")],
)
def test_the_first_machine_of_a_list(nodes: str, first: str):
    assert first_host(nodes) == first


def test_what_is_missing_is_named():
    with pytest.raises(DirectAlignError, match="MASTER_ADDR is not set, though several processes were started"):
        launched({key: value for key, value in TORCHRUN.items() if key != "MASTER_ADDR"})
    with pytest.raises(DirectAlignError, match="LOCAL_RANK is 'x', not a number"):
        launched(TORCHRUN | {"LOCAL_RANK": "x"})
    with pytest.raises(DirectAlignError, match="names no machine"):
        first_host(",")
