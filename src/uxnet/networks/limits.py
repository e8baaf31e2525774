"""Networks that are no larger than what is known of them, refused while they are built and before they take memory."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.module import register_module_buffer_registration_hook, register_module_parameter_registration_hook


@dataclass(frozen=True)
class Size:
    """Of a network: how many tensors it has, and how many values they hold together."""

    tensors: int
    values: int


LARGEST = Size(4_000, 2**31)
"""Of any network: the paper's have at most 159 tensors of parameters and 1.9e8 values, the largest published for volumes 1.5e9 values."""


class TooLarge(ValueError):
    """A network that is being built has become larger than it may."""


@contextlib.contextmanager
def no_larger_than(most: Size) -> Iterator[None]:
    """While a network is built in here, by this thread, it may become so large.

    torch calls whoever asks for each parameter and buffer that a module is given, before its values are made. So settings that ask for a
    thousand million blocks are noticed at the first that is too many, whatever the network.

    Raises:
        TooLarge: at the first parameter or buffer beyond.
    """
    mine, tensors, values = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, tensor: Tensor | None) -> None:
        nonlocal tensors, values
        if tensor is None or threading.get_ident() != mine:
            return
        tensors, values = tensors + 1, values + tensor.numel()
        if tensors > most.tensors or values > most.values:
            raise TooLarge(
                f"they ask for more than {most.tensors} tensors or {most.values} values, the most that there can be; the first too many is "
                f"the {name} of a {type(module).__name__}, {tuple(tensor.shape)}"
            )

    with contextlib.ExitStack() as stack:
        for register in (register_module_parameter_registration_hook, register_module_buffer_registration_hook):
            stack.callback(register(count).remove)
        yield
