"""What several processes agree on."""

from typing import Any


def agreed(accelerator: Any, value: Any) -> Any:
    """What the first process found, on every process: each reads the disk at its own time."""
    if accelerator.num_processes == 1:
        return value
    from accelerate.utils import broadcast_object_list

    told = [value]
    broadcast_object_list(told)
    return told[0]
