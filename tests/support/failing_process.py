"""`uxnet ARGUMENTS`, in a process that fails while it reads the batch of its sixth step if its number is in FAILING_RANK."""

import os

from uxnet.cli.main import program
from uxnet.errors import DatasetError
from uxnet.training import loop

read_batch = loop.read_batch


def reading(*arguments):
    if arguments[4] == 5 and os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == os.environ["FAILING_RANK"]:
        raise DatasetError("x.case: damaged")
    return read_batch(*arguments)


if __name__ == "__main__":
    loop.read_batch = reading
    program()
