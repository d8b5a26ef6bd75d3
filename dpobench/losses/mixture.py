"""Weighted sums of registered losses, written as a name: `dpo:0.8+bco_pair:0.2+sft:1`."""

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from dpobench.errors import UserError
from dpobench.losses.spec import LossSpec
from dpobench.losses.variant import Variant
from dpobench.plugins.plugin import Parameter, Setting, Settings

if TYPE_CHECKING:
    from dpobench.losses.pairs import Objective, Pairs

Value = TypeVar("Value")


def is_mixture(name: str) -> bool:
    """Whether a variant's name is that of a mixture."""
    return "+" in name or ":" in name


def mixture(name: str, find: Callable[[str], Variant]) -> "Mixture":
    """The loss that a mixture's name stands for.

    Args:
        name: `LOSS:WEIGHT+LOSS:WEIGHT`; a weight left out is 1.
        find: gives the registered loss of a name.

    Raises:
        UserError: no loss of this name, a weight that is no positive number, or a loss named twice.
    """
    parts: dict[str, tuple[Variant, float]] = {}
    if re.search(r"\s", name):
        raise UserError(f"mixture {name!r}: write it without blanks")
    for text in name.split("+"):
        loss_name, sign, weight = text.partition(":")
        try:
            value = float(weight) if sign else 1.0
        except ValueError:
            value = 0.0
        if not 0 < value < float("inf"):
            raise UserError(
                f"mixture {name!r}: {weight!r} is no positive weight; write for example {loss_name or 'LOSS'}:0.5"
            )
        if loss_name in parts:
            raise UserError(f"mixture {name!r}: {loss_name!r} is named twice; add the weights")
        parts[loss_name] = find(loss_name), value
    losses = [loss for loss, _ in parts.values()]
    for column in {column for loss in losses for column in loss.columns}:
        allowed = {loss.columns[column].text for loss in losses if column in loss.columns}
        if len(allowed) > 1:
            raise UserError(f"mixture {name!r}: its parts want {column} in {' and in '.join(sorted(allowed))}")
    return Mixture("variant", name, losses[0].function, _spec(losses), losses[0].file, tuple(parts.values()))


def _spec(losses: list[Variant]) -> LossSpec:
    """What a sum of losses can promise, from what each of them does."""
    first, specs = losses[0], [loss.spec for loss in losses]
    return replace(
        first.spec,
        source=" + ".join(dict.fromkeys(spec.source for spec in specs)),
        strength=f"{first.name}.{first.strength}",
        gradient="monotone" if all(spec.gradient == "monotone" for spec in specs) else "free",
        reference=any(spec.reference for spec in specs),
        couples_batch=any(spec.couples_batch for spec in specs),
        stops_gradient=any(spec.stops_gradient for spec in specs),
        states_probability=False,
        baseline=False,
        needs=tuple(dict.fromkeys(need for spec in specs for need in spec.needs)),
        columns={name: interval for spec in specs for name, interval in spec.columns.items()},
        running=None,
        start=None,
        grids={f"{loss.name}.{name}": grid for loss in losses for name, grid in loss.spec.grids.items()},
        bounds={f"{loss.name}.{name}": interval for loss in losses for name, interval in loss.spec.bounds.items()},
    )


@dataclass(frozen=True)
class Mixture(Variant):
    """A weighted sum of losses. Its hyper-parameters are theirs, as `dpo.beta`; its strength is that of the first."""

    parts: tuple[tuple[Variant, float], ...]

    @cached_property
    def parameters(self) -> Mapping[str, Parameter]:
        """Hyper-parameters of every part, by `LOSS.PARAMETER`."""
        named = {f"{loss.name}.{key}": value for loss, _ in self.parts for key, value in loss.parameters.items()}
        return MappingProxyType({name: replace(parameter, name=name) for name, parameter in named.items()})

    @cached_property
    def doc(self) -> str:
        """What is added to what."""
        return "Weighted sum: " + " + ".join(f"{weight:g} {loss.name}" for loss, weight in self.parts)

    @cached_property
    def code_hash(self) -> str:
        """Hash of the parts' code and weights."""
        parts = [(loss.name, loss.code_hash, weight) for loss, weight in self.parts]
        return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]

    @property
    def keeps_statistics(self) -> bool:
        """Whether those of any part outlive a step."""
        return any(loss.keeps_statistics for loss, _ in self.parts)

    def arguments(self, params: Settings) -> dict[str, Setting]:
        """Complete and check hyper-parameters.

        Raises:
            UserError: as for one loss; or parts ask for one need at two settings.
        """
        arguments = super().arguments(params)
        for name in self.given_to_needs():
            self.pick(name, arguments)
        return arguments

    @cached_property
    def recipe(self) -> Mapping[str, float]:
        """Weight of each part: what makes two mixtures the same however they are written."""
        return {loss.name: weight for loss, weight in self.parts}

    def objective(self, pairs: "Pairs", params: Settings) -> "Objective":
        """Sum of the parts' objectives, each with the hyper-parameters and statistics of its part."""
        from dpobench.losses.pairs import Objective

        total: Any = 0.0  # a tensor as soon as a part is added
        ratios = []
        for loss, weight in self.parts:
            part = loss.objective(replace(pairs, statistics=_of(loss, pairs.statistics)), _of(loss, params))
            total = total + weight * part.losses
            ratios += [replace(ratio, weight=weight * ratio.weight) for ratio in part.ratios]
        return Objective(total, tuple(ratios))

    def initial(self) -> dict[str, float]:
        """First values of every part's statistics."""
        return {f"{loss.name}.{key}": value for loss, _ in self.parts for key, value in loss.initial().items()}

    def update(self, pairs: "Pairs", statistics: Mapping[str, float], params: Settings) -> dict[str, float]:
        """Next values of every part's statistics."""
        return {
            f"{loss.name}.{key}": value
            for loss, _ in self.parts
            for key, value in loss.update(pairs, _of(loss, statistics), _of(loss, params)).items()
        }

    def start(self, params: Settings) -> float | None:
        """Weighted sum of the parts' values at policy = reference; None where one declares none."""
        values = [loss.start(_of(loss, params)) for loss, _ in self.parts]
        weights = [weight for _, weight in self.parts]
        known = [value for value in values if value is not None]
        return sum(w * v for w, v in zip(weights, known, strict=True)) if len(known) == len(values) else None

    def pick(self, name: str, params: Settings) -> Setting:
        """Value of a need's hyper-parameter, which the parts that have it must agree on.

        Raises:
            UserError: they do not.
        """
        values = {params[f"{loss.name}.{name}"] for loss, _ in self.parts if name in loss.given_to_needs()}
        if len(values) > 1:
            raise UserError(
                f"mixture {self.name!r}: its parts disagree on {name} ({', '.join(map(str, sorted(values)))})"
            )
        return values.pop()


def _of(loss: Variant, values: Mapping[str, Value]) -> dict[str, Value]:
    """The values of one part, without its name before them."""
    return {
        key.removeprefix(f"{loss.name}."): value for key, value in values.items() if key.startswith(f"{loss.name}.")
    }
