"""What became of one law, and the trying of all laws of a plugin in turn."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dpobench.errors import PluginRefused

Probe = TypeVar("Probe")


@dataclass(frozen=True)
class Law:
    """What became of one law.

    Args:
        name: the law.
        passed: whether the plugin keeps it.
        reason: how it is broken and what to do; empty if it holds.
        meaning: what the law demands, in a line.
    """

    name: str
    passed: bool
    reason: str = ""
    meaning: str = ""


def in_turn(laws: Mapping[str, Callable[[Probe], str]], probe: Probe) -> Iterator[Law]:
    """Try laws one after the other.

    Args:
        laws: by name: a function from the probed plugin to the reason why it is broken, empty where it holds.
        probe: the plugin, ready to be called.
    """
    for name, law in laws.items():
        try:
            reason = law(probe)
        except PluginRefused as refusal:
            reason = str(refusal)
        yield Law(name, not reason, reason, meaning(law))


def meaning(law: Callable[..., str]) -> str:
    """The first line of a law's docstring."""
    return (law.__doc__ or "").partition("\n")[0].rstrip(".")
