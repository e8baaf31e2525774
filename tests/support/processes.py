"""Several processes of `uxnet` that work together, as torchrun or srun start them."""

import os
import socket
import subprocess
import sys

UXNET = ("-m", "uxnet")


def torchrun(*arguments, processes=2, timeout=300, program=UXNET, **environment):
    """Runs `uxnet ARGUMENTS` (or another program) in so many processes; gives the finished torchrun."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *program, *map(str, arguments)]
    return subprocess.run(command, env={**plain(), **environment}, capture_output=True, text=True, timeout=timeout, check=False)


def srun(*arguments, processes=2, timeout=300, program=UXNET, **more):
    """The same as SLURM's srun does it, on one node: every process finds its number in the environment."""
    started, port = [], free_port()
    for rank in range(processes):
        slurm = {
            "SLURM_JOB_ID": "4711",
            "SLURM_JOB_NAME": "train",
            "SLURM_NTASKS": processes,
            "SLURM_NTASKS_PER_NODE": processes,
            "SLURM_STEP_NUM_TASKS": processes,
            "SLURM_STEP_NUM_NODES": 1,
            "SLURM_NNODES": 1,
            "SLURM_PROCID": rank,
            "SLURM_LOCALID": rank,
            "SLURM_NODEID": 0,
            "SLURM_NODELIST": "127.0.0.1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        environment = {**plain(), **{key: str(value) for key, value in slurm.items()}, **more}
        command = [sys.executable, *program, *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    said = [process.communicate(timeout=timeout) for process in started]
    return [subprocess.CompletedProcess(p.args, p.returncode, *texts) for p, texts in zip(started, said, strict=True)]


def plain():
    """This environment with one thread a process, and without what says that it is one of several."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "TORCHELASTIC_"))}
    return {**kept, "OMP_NUM_THREADS": "1"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]
