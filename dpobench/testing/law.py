"""What became of one law, and the trying of all laws of a plugin in turn."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from dpobench.errors import PluginRefused

Probe = TypeVar("Probe")


class NotTried(Exception):
    """Raised by a law that a plugin's declaration takes out; its text is that declaration."""


@dataclass(frozen=True)
class Law:
    """What became of one law.

    Args:
        name: the law.
        passed: whether the plugin keeps it, as far as it was tried.
        reason: how it is broken and what to do, or why it was not tried; empty if it holds.
        meaning: what the law demands, in a line.
        tried: whether the plugin's declaration lets the law be tried.
    """

    name: str
    passed: bool
    reason: str = ""
    meaning: str = ""
    tried: bool = True


def in_turn(laws: Mapping[str, Callable[[Probe], str]], probe: Probe) -> Iterator[Law]:
    """Try laws one after the other.

    Args:
        laws: by name: a function from the probed plugin to the reason why it is broken, empty where it holds.
        probe: the plugin, ready to be called.
    """
    for name, law in laws.items():
        try:
            reason = law(probe)
        except NotTried as declared:
            yield Law(name, passed=True, reason=str(declared), meaning=meaning(law), tried=False)
            continue
        except PluginRefused as refusal:
            reason = str(refusal)
        yield Law(name, not reason, reason, meaning(law))


def meaning(law: Callable[..., str]) -> str:
    """The first line of a law's docstring."""
    return (law.__doc__ or "").partition("\n")[0].rstrip(".")
