"""Devices, processes and precision for training, through Lightning Fabric: the one file that knows it.

One process trains on one device. Several, started by `torchrun` or by SLURM's `srun`, share out each batch: "ddp" keeps a whole network in
each, "fsdp" shares out weights, gradients and the optimiser's state, too (torch's `fully_shard`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import ClusterEnvironment, LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from uxnet.devices import choose_device, choose_precision, in_fast_memory, keep_freed_memory
from uxnet.errors import DeviceError, plural

Strategy = Literal["auto", "ddp", "fsdp"]
Result = TypeVar("Result")

_FABRIC_NAMES = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
# While the first process prepares cases, the others wait; who dies is noticed by the launcher, not by this clock.
_PATIENCE = timedelta(hours=24)


@dataclass(frozen=True)
class Ready:
    """What runs: the network to call (`running`) around the one whose weights are trained, and what steps around its optimiser."""

    running: nn.Module
    trained: nn.Module
    stepping: Optimizer
    optimiser: Optimizer


class TrainingEngine:
    """Runs a network forwards and backwards on a device in a precision, alone or as one of several processes.

    Attributes:
        rank, world: the number of this process and how many there are.
        device: of this process.
        precision: "float32", "bfloat16" or "float16".
        strategy: "single", "ddp" or "fsdp".

    Raises:
        DeviceError: if this machine has no such device, the precision does not suit it, or "fsdp" is asked of one process.
    """

    def __init__(self, device: str = "auto", precision: str = "auto", strategy: Strategy = "auto") -> None:
        launched = _launched(os.environ)
        chosen = choose_device(device)
        self.precision = choose_precision(precision, chosen)
        self.world = launched.nodes * launched.processes
        self.strategy = "single" if self.world == 1 else "ddp" if strategy == "auto" else strategy
        if self.world == 1 and strategy == "fsdp":
            raise DeviceError("fsdp shares a network out over several processes, this is the only one; start them with torchrun or srun")
        if self.world > 1 and (chosen.type == "mps" or chosen.index is not None):
            raise DeviceError(f"{self.world} processes cannot share {chosen}; use device=cuda, which gives each a GPU of its own, or cpu")
        devices: Any = launched.processes if self.world > 1 or chosen.type == "cpu" else [chosen.index or 0]
        with _quiet():
            self.fabric = Fabric(
                accelerator=chosen.type,
                devices=devices,
                num_nodes=launched.nodes,
                strategy=_fabric_strategy(self.strategy, self.world),
                precision=_FABRIC_NAMES[self.precision],  # type: ignore[arg-type]
                plugins=[launched.environment],
            )
            self.fabric.launch()
        self.rank, self.device = self.fabric.global_rank, self.fabric.device
        if self.device.type == "cpu":
            keep_freed_memory()
        if self.world > 1:
            # Of kernels of one voxel two layouts are the same; DDP tells each process that they have different names.
            warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")

    def setup(self, network: nn.Module, optimiser_of: Callable[[nn.Module], Optimizer], compiled: bool = False) -> Ready:
        """A network and its optimiser, ready to run: on the device, in channels-last memory where that is faster.

        Args:
            network: with "fsdp" a copy of it is trained and itself stays whole, to segment with.
            optimiser_of: makes the optimiser of the network that is trained.
            compiled: let torch compile what is trained, at its first call.
        """
        if self.strategy != "fsdp":
            trained = in_fast_memory(network, self.device)
            if compiled:
                trained.compile()
            optimiser = optimiser_of(trained)
            running, stepping = self.fabric.setup(trained, optimiser)
            return Ready(cast(nn.Module, running), trained, cast(Optimizer, stepping), optimiser)
        trained = copy.deepcopy(network).to(self.device, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        running = self.fabric.setup_module(trained)
        if compiled:
            trained.compile()
        optimiser = optimiser_of(trained)
        in_fast_memory(network.to(self.device), self.device)
        return Ready(cast(nn.Module, running), trained, cast(Optimizer, self.fabric.setup_optimizers(optimiser)), optimiser)

    def share(self, batch: int) -> list[int]:
        """The samples of a batch that this process computes: as many as every other.

        Raises:
            DeviceError: if they cannot be shared out evenly.
        """
        if batch % self.world:
            raise DeviceError(
                f"training.batch: {plural(batch, 'patch', 'patches')} cannot be shared out over {self.world} processes; make it a multiple"
            )
        each = batch // self.world
        return list(range(self.rank * each, (self.rank + 1) * each))

    def autocast(self) -> AbstractContextManager[None]:
        """Around what is computed in the run's precision outside its own network."""
        return self.fabric.autocast()

    def accumulating(self, running: nn.Module, more: bool) -> AbstractContextManager[None]:
        """Around the backward pass of a part of a batch: gradients are not exchanged while `more` parts follow."""
        return self.fabric.no_backward_sync(cast(Any, running), enabled=more) if self.world > 1 else contextlib.nullcontext()

    def gradient_norm(self, running: nn.Module, stepping: Optimizer, most: float) -> float:
        """The norm of the whole gradient, after unscaling; the gradient is then shortened to `most` where it is longer (0: never)."""
        norm = self.fabric.clip_gradients(running, stepping, max_norm=most or math.inf, error_if_nonfinite=False)
        return float(whole(cast(Tensor, norm)))

    @property
    def scales_loss(self) -> bool:
        """Whether the loss is scaled (float16), as its small gradients would be lost."""
        return self.precision == "float16"

    def skip(self) -> None:
        """In place of a step: a scaler that saw gradients overflow, as happens now and then by design, lowers the scale."""
        if self.scales_loss:
            cast(Any, self.fabric.strategy.precision).scaler.update()

    def scaler_state(self) -> dict[str, Any]:
        """What the loss's scaler remembers, as plain values; empty without one."""
        return dict(self.fabric.strategy.precision.state_dict()) if self.scales_loss else {}

    def load_scaler_state(self, state: Mapping[str, Any]) -> None:
        """Gives the scaler its memory back."""
        if self.scales_loss and state:
            self.fabric.strategy.precision.load_state_dict(dict(state))

    def put(self, tensor: Tensor) -> Tensor:
        """A tensor on the device; the copy runs beside what the device computes, where that can be."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def backward(self, loss: Tensor) -> None:
        """The gradients of a loss, scaled where the precision needs it."""
        self.fabric.backward(loss)

    # ---- several processes; alone, each of these is what its name says of one

    def first(self, work: Callable[[], Result]) -> Result:
        """What `work()` gives or raises in the first process, in all of them; the others wait."""
        if self.world == 1:
            return work()
        outcome: tuple[Result | None, Exception | None] = (None, None)
        if self.rank == 0:
            try:
                outcome = work(), None
            except Exception as error:  # noqa: BLE001  # the others wait for it, and are told
                outcome = None, error
        result, failed = self.fabric.broadcast(outcome)
        if failed is not None:
            raise failed
        return cast(Result, result)

    def every(self, work: Callable[[], Result]) -> list[Result]:
        """What `work()` gives in each process, in the order of their ranks; what it raises in one is raised in all."""
        if self.world == 1:
            return [work()]
        own: tuple[Result | None, Exception | None]
        try:
            own = work(), None
        except Exception as error:  # noqa: BLE001  # the others wait for it, and are told
            own = None, error
        outcomes: list[Any] = [None] * self.world
        dist.all_gather_object(outcomes, own)
        for _, failed in outcomes:
            if failed is not None:
                raise failed
        return [cast(Result, result) for result, _ in outcomes]

    def mean(self, values: Sequence[float]) -> list[float]:
        """The mean over the processes of each number."""
        if self.world == 1:
            return list(values)
        exact = torch.float32 if self.device.type == "mps" else torch.float64
        tensor = torch.tensor(values, dtype=exact, device=self.device)
        dist.all_reduce(tensor)
        return [float(value) for value in tensor / self.world]


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which this process may hold a part only, put together; every process must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def why_not_compiled() -> str:
    """Why torch cannot compile networks here, such as for want of a compiler; empty where it can."""
    try:
        torch.compile(_twice)(torch.ones(2))
    except Exception as error:  # noqa: BLE001  # whatever it is, the network runs without
        return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return ""


def _twice(x: Tensor) -> Tensor:
    return x + x


def is_first_process() -> bool:
    """Whether this process is the only one, or the first of several."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


@dataclass(frozen=True)
class _Launched:
    """By what this process was started, with how many beside it on this machine, and on how many machines."""

    environment: ClusterEnvironment
    processes: int = 1
    nodes: int = 1


def _launched(environ: Mapping[str, str]) -> _Launched:
    if "TORCHELASTIC_RUN_ID" in environ:
        return _Launched(TorchElasticEnvironment(), int(environ["LOCAL_WORLD_SIZE"]), int(environ["GROUP_WORLD_SIZE"]))
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if tasks > 1:
        nodes = int(environ.get("SLURM_STEP_NUM_NODES", "1"))
        if tasks % nodes or "SLURM_NTASKS_PER_NODE" not in environ:
            raise DeviceError(
                f"srun started {tasks} tasks on {nodes} nodes; say how many on each, by --ntasks-per-node instead of --ntasks"
            )
        return _Launched(SLURMEnvironment(auto_requeue=False), tasks // nodes, nodes)
    return _Launched(LightningEnvironment())


def _fabric_strategy(name: str, world: int) -> Any:
    if name == "ddp":
        return DDPStrategy(timeout=_PATIENCE)
    if name == "fsdp":
        return ModelParallelStrategy(_sharded, data_parallel_size=world, tensor_parallel_size=1, timeout=_PATIENCE)
    return "auto"


def _sharded(network: nn.Module, mesh: Any) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    # As one group: the networks call parts of their parts, and what FSDP gathers for a part is gathered only when that part is called.
    fully_shard(network, mesh=mesh["data_parallel"])
    return network


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Fabric's advice on settings that are made here on purpose, and its banner."""
    logger = logging.getLogger("lightning_fabric")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
