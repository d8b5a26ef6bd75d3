"""What several processes agree on."""

from typing import TypeVar

from dpobench.training.accelerate import Accelerator

_Value = TypeVar("_Value")


def agreed(accelerator: Accelerator, value: _Value) -> _Value:
    """The value of the first process, on every process: each reads the disk at its own time."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    values = [value]
    broadcast_object_list(values)
    return values[0]
