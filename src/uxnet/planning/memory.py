"""How much memory a training step takes, told without taking it; and how long it takes, told from a smaller one.

The step (batch, forward pass, loss, backward pass, optimiser) runs once on tensors that have shapes but no memory (torch's fake tensors),
and every block that it would allocate is written down with the moment at which it would be freed. On a CPU the peak is then what the C
library's heap comes to hold: it hardly ever gives a block back, and hardly ever finds a hole for a block of another size, so what counts
is the most blocks *of each size* that are alive at a time, added up over the sizes; the largest lie beside the heap and are given back.
On a GPU torch's allocator reuses blocks well, and what counts is the most that is alive at a time.

`benchmarks/plan_memory.py` holds it against measured steps.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from uxnet.devices import GIVEN_BACK, computing_with, in_fast_memory
from uxnet.labels import Label, Labels
from uxnet.machine import load, others_cores
from uxnet.networks.build import build
from uxnet.networks.macs import count_macs
from uxnet.recipe import Stage
from uxnet.training.losses import SegmentationLoss

_TYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
# Buffers inside kernels are not seen, and holes that smaller blocks do fit into are not counted on. What is left of both, measured.
_UNSEEN: Mapping[str, float] = {
    "unet": 1.25,
    "segresnet": 1.1,
    "rapnet": 0.9,
    "transbts": 1.4,
    "nnformer": 1.15,
    "swinunetr": 1.35,
}
# What our own gradients keep less than torch's (`networks.kernels_cpu`, `norms_cpu`): traced are torch's, in a third of the time. And in
# bfloat16, how much of what is not seen is of that size. Measured, on CPUs (`benchmarks/plan_memory.py`).
_OURS: Mapping[str, Mapping[str, float]] = {
    "float32": {"uxnet": 0.87, "nnunet": 0.76},
    "bfloat16": {"uxnet": 0.93, "nnunet": 0.75, "swinunetr": 0.8, "transbts": 0.8, "unet": 0.9},
}
# Of blocks that are given back at once there are no holes, so what is not kept is not held: 96^3 at full width, in both precisions.
_OURS_MAPPED: Mapping[str, float] = {"uxnet": 0.7}
# Of torch's allocator on a GPU: what rounding and splitting cost, and room for cuDNN to work in. Not measured here.
_GPU_SHARE, _GPU_ROOM = 1.1, 300_000_000
# So many short steps are measured, the first of them to warm up, or as many as fit into so many seconds.
_LEAST, _MOST, _SECONDS = 4, 11, 10.0


@dataclass
class Ledger:
    """Blocks that were allocated and freed.

    now, peak: bytes alive, and the most there ever were.
    most: size -> the most blocks of that size that were alive at a time.
    mapped, most_mapped: bytes alive in blocks too large for the heap, and the most there ever were.
    """

    now: int = 0
    peak: int = 0
    most: Counter[int] = field(default_factory=Counter)
    alive: Counter[int] = field(default_factory=Counter)
    mapped: int = 0
    most_mapped: int = 0

    def take(self, size: int) -> None:
        """A block more."""
        self._count(size, 1)
        self.peak = max(self.peak, self.now)
        self.most[size] = max(self.most[size], self.alive[size])
        self.most_mapped = max(self.most_mapped, self.mapped)

    def give(self, size: int) -> None:
        """A block fewer."""
        self._count(size, -1)

    def _count(self, size: int, change: int) -> None:
        self.now += change * size
        self.alive[size] += change
        self.mapped += change * size if size > GIVEN_BACK else 0

    @property
    def heap(self) -> int:
        """Bytes of a heap in which blocks are reused for blocks of their own size alone; without the larger blocks beside it."""
        return sum(size * count for size, count in self.most.items() if size <= GIVEN_BACK)


def predicted_memory(stage: Stage, channels: int, classes: int, device: str = "cpu", precision: str = "float32") -> int:
    """The peak of a training step, in bytes: weights, gradients, AdamW's state and the running average, activations and batch.

    What the process holds anyway (Python, torch: about half a gigabyte), the prepared cases and validation are not in it.

    Args:
        stage: of the recipe; its patch, batch, `accumulate`, network, loss and augmentation count.
        channels: of a scan.
        classes: channels of the labels, the background among them.
        device: "cpu", or anything else for a GPU.
        precision: "float32", "bfloat16" or "float16".

    Raises:
        RecipeError: if the network cannot be built.
    """
    ledger = traced_step(stage, channels, classes, device, precision)
    if device != "cpu":
        return round(ledger.peak * _GPU_SHARE) + _GPU_ROOM
    name = stage.network.name
    ours = _OURS.get(precision, {}).get(name, 1.0)
    return round(_UNSEEN.get(name, 1.0) * (ledger.heap * ours + ledger.most_mapped * _OURS_MAPPED.get(name, ours)))


def traced_step(stage: Stage, channels: int, classes: int, device: str = "cpu", precision: str = "float32") -> Ledger:
    """What a step allocates; see `predicted_memory`. Takes seconds and next to no memory, however large the patch."""
    inputs, outputs = stage.in_channels(channels), stage.out_channels(classes)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        weightless = build(stage.network.name, inputs, outputs, stage.sampling.patch, stage.network.settings)
    loss_of = SegmentationLoss(stage.loss, Labels(tuple(Label(f"{n}", n) for n in range(1, max(outputs, 2)))))
    loss_of.classes = outputs
    ledger = Ledger()
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True), _Watch(ledger):
        network = _fake(weightless).train()
        trained = [p for p in network.parameters() if p.requires_grad]
        kept = [torch.zeros_like(p) for p in trained for _ in range(2)]
        kept += [torch.zeros_like(p) for p in network.parameters()] if stage.training.ema else []
        read, images, indices = _batch(stage, inputs)
        size = -(-stage.training.batch // stage.training.accumulate)
        for first in range(0, stage.training.batch, size):
            x, target = _augmented(images[first : first + size], indices[first : first + size], stage)
            with _computed(device, precision):
                logits = network(x)
            loss = loss_of(logits, target)
            del logits
            loss.backward()
            del x, target, loss
        if device != "cpu":
            _optimise(trained)
        del kept, read
    return ledger


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves the modes' own methods without types
    """Writes every new block down, and when it is freed."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ledger = ledger
        self.known: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        # What is real stays so: numbers that code reads back.
        if given and not any(isinstance(t, FakeTensor) for t in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        out = func(*args, **kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        return out

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known:
            self.known[key] = storage.nbytes()
            self.ledger.take(self.known[key])
            weakref.finalize(storage, self._freed, key)

    def _freed(self, key: int) -> None:
        self.ledger.give(self.known.pop(key))


class _NormsInFloat32(TorchFunctionMode):
    """What autocast does on a GPU and not on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        if func in (F.group_norm, F.layer_norm, F.softmax):
            args = (args[0].float(), *args[1:])
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def _computed(device: str, precision: str) -> Iterator[None]:
    """As the training engine computes, but for the place."""
    if precision not in _TYPES:
        yield
        return
    norms = contextlib.nullcontext() if device == "cpu" else _NormsInFloat32()
    with torch.autocast("cpu", _TYPES[precision]), norms:
        yield


def _fake(network: nn.Module) -> nn.Module:
    """The network with weights of shapes alone in place of its own, in channels-last memory as in training."""
    owned = [weights for module in network.modules() for weights in (module._parameters, module._buffers)]
    before = {id(old): old for weights in owned for old in weights.values() if old is not None}  # one for those that are tied
    after: dict[int, Tensor] = {}
    for key, old in before.items():
        new = torch.empty(old.shape, dtype=old.dtype)
        new = new.contiguous(memory_format=torch.channels_last_3d) if new.ndim == 5 else new
        after[key] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for weights in owned:
        weights.update({name: after[id(old)] for name, old in weights.items() if old is not None})  # type: ignore[misc]
    return network


def _batch(stage: Stage, channels: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """The next batch, which is read meanwhile, and this one's images and indices."""
    shape = (stage.training.batch, channels, *stage.sampling.patch)
    coming = [torch.empty(shape), torch.empty((shape[0], *shape[2:]), dtype=torch.uint8)]
    return coming, torch.empty(shape), torch.empty((shape[0], *shape[2:]), dtype=torch.uint8)


def _augmented(images: Tensor, indices: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
    """Blocks as `augment` needs them, where it does anything."""
    if stage.augment == type(stage.augment)():
        return images, indices
    grid = torch.empty((len(images), *images.shape[2:], 3))
    moved, labels = torch.empty_like(images), torch.empty(indices.shape)
    changed = torch.empty_like(moved)
    del grid, moved, labels
    return changed, torch.empty_like(indices)


def _optimise(trained: Sequence[nn.Parameter]) -> None:
    """AdamW's intermediates, of all weights at once. On CPUs it has none."""
    between = [torch.empty_like(p) for p in trained for _ in range(2)]
    del between


@dataclass(frozen=True)
class StepTime:
    """How long a step takes, and under which conditions.

    seconds: a step, scaled from the fastest of `measured` short ones.
    threads: that computed, on a CPU.
    others: cores that other processes kept busy meanwhile, on average.
    """

    seconds: float
    measured: int
    threads: int
    others: float


def step_seconds(stage: Stage, channels: int, classes: int, device: str = "cpu", precision: str = "float32") -> StepTime:
    """How long a step takes here: a patch of fewer voxels is measured (its forward and backward pass), and scaled by its arithmetic.

    Several are, and the fastest counts: what others do on the machine makes some of them slow, and none fast.

    Args:
        stage, channels, classes, precision: as in `predicted_memory`.
        device: by torch's name.
    """
    where, sides = torch.device(device), list(stage.sampling.patch)
    inputs, outputs = stage.in_channels(channels), stage.out_channels(classes)
    lower = _TYPES.get(precision)
    with torch.random.fork_rng(devices=[]), computing_with():
        network = build(stage.network.name, inputs, outputs, stage.sampling.patch, stage.network.settings)
        network = in_fast_memory(network.to(where), where).train()

        def gmac() -> float:
            return count_macs(network, (1, inputs, *sides)).true / 1e9

        whole = gmac() * stage.training.batch
        while getattr(network, "fixed_patch", None) is None and gmac() > 3 and max(sides) > 16:
            longest = sides.index(max(sides))
            sides[longest] = max(16, sides[longest] // 2)
        image = torch.randn((1, inputs, *sides), device=where)
        taken: list[float] = []
        before = load()
        while len(taken) < _LEAST or (len(taken) < _MOST and time.monotonic() - before.at < _SECONDS):
            started = time.perf_counter()
            with torch.autocast(where.type, lower, enabled=lower is not None):
                logits = network(image)
            levels = logits if isinstance(logits, list) else [logits]
            torch.stack([level.float().square().mean() for level in levels]).sum().backward()  # type: ignore[no-untyped-call]
            if where.type == "cuda":
                torch.cuda.synchronize(where)
            taken.append(time.perf_counter() - started)
        fastest = min(taken[1:])  # the first one warms up
        return StepTime(fastest * whole / gmac(), len(taken) - 1, torch.get_num_threads(), others_cores(before, load()))
