"""Components of variance of the selected cells, as the report and the planning of a design need them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dpobench.analysis.findings import TEST, Findings
from dpobench.stats.components import Components, components

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """The variances of the ranking metric and the design they were measured in.

    Args:
        parts: the variances.
        seeds: of the variant with the fewest.
        prompts: test prompts all variants have.
        variants: their number.
    """

    parts: Components
    seeds: int
    prompts: int
    variants: int

    @property
    def design(self) -> tuple[int, int]:
        """Seeds and prompts."""
        return self.seeds, self.prompts


def measured(f: Findings) -> Measured | None:
    """Variances over the variants at their selected beta; None where fewer than two were scored."""
    scores = list(selected_scores(f).values())
    if len(scores) < 2:
        return None
    seeds, prompts = min(len(table) for table in scores), scores[0].shape[1]
    return Measured(components(scores), seeds, prompts, len(scores))


def selected_scores(f: Findings) -> dict[str, Array]:
    """Scores [S, N] of each variant at its selected beta, best first; the same prompts for all."""
    candidates = {variant: c.ids for variant, c in f.chosen.items() if variant not in f.baselines}
    ids = {variant: runs for variant, runs in candidates.items() if runs and f.estimate(runs, f.ranking) is not None}
    if f.ranking is None or not ids:
        return {}
    table = f.results.table(f.ranking, [run for runs in ids.values() for run in runs], None, TEST)
    if table.shape[1] < 2:
        return {}
    scores = {variant: np.asarray(table.loc[runs].to_numpy(), dtype=np.float64) for variant, runs in ids.items()}
    sign = 1 if f.direction == "lower" else -1
    return dict(sorted(scores.items(), key=lambda item: sign * float(item[1].mean())))
