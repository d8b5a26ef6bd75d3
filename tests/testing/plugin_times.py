"""Prints how long each faulty loss takes to be refused: `python -m tests.testing.plugin_times`."""

import contextlib
import statistics
import sys
import time

from dpobench.errors import PluginRefused
from dpobench.testing import require
from tests.testing.test_refused_losses import FAULTY, accepted, loaded


def milliseconds(name: str, file: str | None = None, repeats: int = 5) -> float:
    """Processor time of `require` after import, the least of some trials."""
    variant, found = loaded(name, file), []
    for _ in range(repeats):
        before = time.process_time()
        with contextlib.suppress(PluginRefused):
            require(variant)
        found.append(1000 * (time.process_time() - before))
    return min(found)


if __name__ == "__main__":
    faulty = {name: milliseconds(name) for name in FAULTY}
    for name, took in sorted(faulty.items(), key=lambda one: one[1]):
        sys.stdout.write(f"{took:7.2f} ms  {name}: {FAULTY[name][0]}\n")
    sound = {name: milliseconds(name, "accepted") for name in accepted()}
    for what, times in (("refused", faulty), ("accepted", sound)):
        worst = max(times, key=times.__getitem__)
        median = statistics.median(times.values())
        sys.stdout.write(f"{what}: median {median:.2f} ms, worst {times[worst]:.2f} ms ({worst})\n")
