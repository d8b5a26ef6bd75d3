"""Round robin: Bradley-Terry strengths whose errors take into account that one prompt is in every match.

The model says that a beats b with the chance sigma(strength a - strength b). It is fitted to the mean score of each
pair, ties as halves; the errors are the sandwich's, clustered by prompt, and where a player is a method with several
seeds, its seeds add their spread, as in `crossed`. Every seed of one player meets every seed of the other: that
reads the same answers more often; seeds of equal number have nothing in common, so they are not paired.

References: Bradley and Terry 1952, https://doi.org/10.2307/2334029; Ford 1957 on when the strengths are finite,
https://doi.org/10.1080/00029890.1957.11989117.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import numpy.typing as npt
from scipy import linalg, special, stats
from scipy.sparse.csgraph import connected_components

from dpobench.stats.crossed import Estimate, Spread, between_df, crossed_mean, share_interval

Array = npt.NDArray[np.float64]
Pairs = Mapping[tuple[str, str], Array]
# Where some players never lose, strengths are infinite: then every pair is given this number of tied prompts.
TIED_PROMPTS = 0.5


@dataclass(frozen=True)
class Tournament:
    """Strengths with their errors, and how well they fit.

    Args:
        players: in the order given.
        strength: of each, less the first player's, in logits (log-odds of winning); zero without error for the first.
        expected: for each ordered pair the model's chance of winning.
        observed: for each ordered pair that met the mean score with its interval.
        separated: whether some players never lose to the others: then the strengths depend on the tied prompts added, and only their
            order means something.
        misfit: p-value of "strengths explain all pairs"; None with fewer than three players, or with too few prompts for the test.
        worst: the pair the model explains worst: a, b, observed less expected.
        cycles: triples in which a beats b, b beats c and c beats a.
    """

    players: tuple[str, ...]
    strength: Mapping[str, Estimate]
    expected: Mapping[tuple[str, str], float]
    observed: Mapping[tuple[str, str], Estimate]
    separated: bool
    misfit: float | None
    worst: tuple[str, str, float] | None
    cycles: tuple[tuple[str, str, str], ...]


def round_robin(rewards: Mapping[str, Array]) -> dict[tuple[str, str], Array]:
    """Scores of every pair from pointwise rewards.

    Args:
        rewards: for each player an array [S, N, D]: seeds, prompts, draws; N and D are common. Missing rewards are NaN.

    Returns: for each pair (a, b), in the order of the players, an array [S_a, S_b, N]: 1 where a's reward for a draw is greater than
        b's for the same draw, 0 where smaller, 0.5 where equal, averaged over draws; NaN where no draw has both.
    """
    scores = {}
    for a, b in combinations(rewards, 2):
        total = np.zeros((len(rewards[a]), len(rewards[b]), rewards[a].shape[1]))
        count = np.zeros_like(total)
        for draw in range(rewards[a].shape[2]):
            difference = rewards[a][:, None, :, draw] - rewards[b][None, :, :, draw]
            known = ~np.isnan(difference)
            total += np.where(known, 0.5 + 0.5 * np.sign(difference), 0.0)
            count += known
        scores[a, b] = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return scores


def tournament(players: Sequence[str], pairs: Pairs) -> Tournament:
    """Fit the strengths.

    Args:
        players: the first is the one the others are measured from.
        pairs: for every pair (a, b) of players that met, a before b, an array [S_a, S_b, N] of scores of a in [0, 1], columns the
            same prompts, nothing missing. S = 1 for a player without seeds, such as the reference. Not all must have met, but from
            each player a chain of pairs must lead to each other one.

    Returns: strengths, chances, intervals, fit.

    Raises:
        ValueError: some players are linked to the others by no pair.
    """
    played = [pair for pair in combinations(players, 2) if pair in pairs]
    _refuse_apart(players, played)
    scores = [np.asarray(pairs[pair], dtype=np.float64) for pair in played]
    prompts = scores[0].shape[2]
    design = np.zeros((len(played), len(players)))
    for row, (a, b) in enumerate(played):
        design[row, players.index(a)], design[row, players.index(b)] = 1.0, -1.0
    design = design[:, 1:]
    mean = np.array([score.mean() for score in scores])
    separated = not _linked(players, played, mean)
    ties = TIED_PROMPTS if separated else 0.0
    fitted = _bradley_terry(design, (mean * prompts + ties / 2) / (prompts + ties))
    chance = special.expit(design @ fitted)
    bend = (design * (chance * (1 - chance))[:, None]).T @ design
    step = np.linalg.solve(bend, design.T)  # strengths per score, [players - 1, pairs]
    by_seed = _by_seed(players, played, scores)
    seeds = {player: seeded.shape[1] for player, seeded in by_seed.items()}
    strength = {players[0]: Estimate(0.0, 0.0, 0.0, 0.0, prompts - 1.0, prompts, seeds[players[0]])}
    for place, player in enumerate(players[1:]):
        by_player = {name: np.tensordot(step[place], seeded, axes=1) for name, seeded in by_seed.items()}
        strength[player] = _of_players(
            float(fitted[place]), step[place] @ _prompt_scores(scores), by_player, (player, players[0])
        )
    misfit, worst = _fit(design, scores, chance, list(by_seed.values()))
    return Tournament(
        tuple(players),
        strength,
        {(a, b): _chance(strength, a, b) for a in players for b in players if a != b},
        _observed(played, scores),
        separated,
        misfit,
        (*played[worst], float(mean[worst] - chance[worst])) if misfit is not None else None,
        _cycles(players, dict(zip(played, mean, strict=True))),
    )


def _bradley_terry(design: Array, mean: Array) -> Array:
    """Maximum likelihood, by statsmodels."""
    # Imported here: its models take two seconds that no other statistic needs.
    import statsmodels.api as sm

    # Means that the strengths explain fully, as those of two players, look to it like separation, which is treated above.
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        fitted = sm.GLM(mean, design, family=sm.families.Binomial()).fit(tol=1e-12)
    return np.asarray(fitted.params, dtype=np.float64)


def _linked(players: Sequence[str], played: Sequence[tuple[str, str]], mean: Array) -> bool:
    """Whether from each player a chain of at least partly lost matches leads to each other one."""
    lost = np.zeros((len(players), len(players)))
    for (a, b), score in zip(played, mean, strict=True):
        lost[players.index(a), players.index(b)] = score < 1
        lost[players.index(b), players.index(a)] = score > 0
    return bool(connected_components(lost, connection="strong")[0] == 1)


def _refuse_apart(players: Sequence[str], played: Sequence[tuple[str, str]]) -> None:
    met = np.zeros((len(players), len(players)))
    for a, b in played:
        met[players.index(a), players.index(b)] = 1
    parts, of = connected_components(met, directed=False)
    if parts != 1:
        apart = [player for player, part in zip(players, of, strict=True) if part != of[0]]
        raise ValueError(f"no pair links {', '.join(apart)} to {players[0]}: their strengths cannot be compared")


def _prompt_scores(scores: Sequence[Array]) -> Array:
    return np.stack([score.mean((0, 1)) for score in scores])


def _by_seed(players: Sequence[str], played: Sequence[tuple[str, str]], scores: Sequence[Array]) -> dict[str, Array]:
    """For each player the scores of its pairs, [pairs, S, N], averaged over the opponents' seeds; zeros elsewhere."""
    by_player = {}
    for player in players:
        axes = {row: pair.index(player) for row, pair in enumerate(played) if player in pair}
        rows = {row: scores[row].mean(1 - axis) for row, axis in axes.items()}
        first = next(iter(rows.values()))
        by_player[player] = np.stack([rows.get(row, np.zeros_like(first)) for row in range(len(played))])
    return by_player


def _of_players(value: float, parts: Array, by_player: Mapping[str, Array], compared: tuple[str, str]) -> Estimate:
    """An estimate from its linear parts.

    Args:
        value: the estimate.
        parts: over prompts, shape [N].
        by_player: the same parts of each player, shape [S, N]; S = 1 where it has no seeds.
        compared: the two players, first the one that the estimate is of. A seed that is better against all players changes no other
            player's strength, so the degrees of freedom are those of the two; what the others' seeds add is error all the same.
    """
    prompts = crossed_mean([parts[None]])
    assert prompts.spread is not None
    spread, seeded = prompts.spread, {name: _spread(scores) for name, scores in by_player.items() if len(scores) > 1}
    with_seeds = [name for name in compared if name in seeded]
    if seeded:
        named = with_seeds or list(seeded)
        df = float(between_df([seeded[name].seeds for name in named], [len(by_player[name]) for name in named]))
        between, rest = (sum(float(getattr(s, part)) for s in seeded.values()) for part in ("seeds", "residual"))
        spread = Spread(spread.sampled, spread.sampled_df, between, df, rest)
    se = float(np.sqrt(spread.variance))
    half = float(spread.quantile()) * se
    # A player trained once is a checkpoint, whatever the other is.
    seeds = min((len(by_player[name]) for name in with_seeds), default=1) if compared[0] in with_seeds else 1
    return Estimate(value, value - half, value + half, se, float(spread.df()), prompts.n_prompts, seeds, spread)


def _spread(scores: Array) -> Spread:
    spread = crossed_mean([scores]).spread
    assert spread is not None
    return spread


def _fit(design: Array, scores: Sequence[Array], chance: Array, by_seed: Sequence[Array]) -> tuple[float | None, int]:
    """P-value of the differences that the strengths leave unexplained (Hotelling's test), and the row of the pair they explain worst."""
    left_over = linalg.null_space(design.T)  # combinations of pairs that no strengths change
    values = _prompt_scores(scores)
    prompts, free = values.shape[1], left_over.shape[1]
    gap = values.mean(1) - chance
    if free == 0 or prompts <= 2 * free:
        return None, 0
    variance = chance * (1 - chance)
    project = np.eye(len(chance)) - (variance[:, None] * design) @ np.linalg.solve(
        design.T @ (variance[:, None] * design), design.T
    )
    moved = left_over.T @ project
    covariance = np.atleast_2d(np.cov(moved @ values)) / prompts
    covariance = covariance + _seed_covariance([np.tensordot(moved, arm, axes=1) for arm in by_seed])
    distance = left_over.T @ gap
    rank = int(np.linalg.matrix_rank(covariance, hermitian=True))
    if rank == 0:
        return None, 0
    squared = float(distance @ np.linalg.pinv(covariance, hermitian=True) @ distance)
    return float(stats.f.sf(squared * (prompts - rank) / (rank * (prompts - 1)), rank, prompts - rank)), int(
        np.abs(gap).argmax()
    )


def _seed_covariance(players: Sequence[Array]) -> Array:
    """Contribution of the players' seeds, [K, S, N] each, to the covariance of the means; not below zero in any direction."""
    total = np.zeros((len(players[0]), len(players[0])))
    for moved in players:
        count, prompts = moved.shape[1:]
        if count < 2:
            continue
        means = moved.mean(2)
        rest = moved - moved.mean(1, keepdims=True) - (means - means.mean(1, keepdims=True))[:, :, None]
        residual = np.einsum("ksn,lsn->kl", rest, rest) / ((count - 1) * (prompts - 1)) / (count * prompts)
        total += np.atleast_2d(np.cov(means)) / count - residual
    values, vectors = np.linalg.eigh(total)
    return np.asarray((vectors * np.maximum(values, 0.0)) @ vectors.T)


def _chance(strength: Mapping[str, Estimate], a: str, b: str) -> float:
    return float(special.expit(strength[a].value - strength[b].value))


def _observed(played: Sequence[tuple[str, str]], scores: Sequence[Array]) -> dict[tuple[str, str], Estimate]:
    observed = {}
    for (a, b), score in zip(played, scores, strict=True):
        by_player = {a: score.mean(1), b: score.mean(0)}
        around = share_interval(_of_players(float(score.mean()), score.mean((0, 1)), by_player, (a, b)))
        observed[a, b] = around
        observed[b, a] = replace(around, value=1 - around.value, low=1 - around.high, high=1 - around.low)
    return observed


def _cycles(players: Sequence[str], mean: Mapping[tuple[str, str], float]) -> tuple[tuple[str, str, str], ...]:
    def beats(a: str, b: str) -> bool:
        return mean.get((a, b), 0.5) > 0.5 or mean.get((b, a), 0.5) < 0.5

    cycles = []
    for a, b, c in combinations(players, 3):
        if beats(a, b) and beats(b, c) and beats(c, a):
            cycles.append((a, b, c))
        elif beats(b, a) and beats(c, b) and beats(a, c):
            cycles.append((a, c, b))
    return tuple(cycles)
