"""Each variant against each other one at the selected β, and what trying more cells brings."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from dpobench.analysis.findings import SELECTION, TEST, Findings, put
from dpobench.analysis.results import REFERENCE, Array
from dpobench.artifacts.records import TournamentRecord
from dpobench.report.figures import canvas, entry, legend, look, plain
from dpobench.report.metrics import REWARD
from dpobench.report.section import Section
from dpobench.report.table import Column, Row, Table, probability
from dpobench.stats.crossed import Estimate
from dpobench.stats.tournament import Tournament, round_robin, tournament
from dpobench.stats.tradeoff import best_trials

FOLDER, VERDICTS = "tournament", "tournament/verdicts.parquet"
FEWEST, ROOMY = 8, 6
COMPARED = "the judge's comparisons"


def section(f: Findings) -> Section | None:
    """The section: round robin, Bradley-Terry strengths, and the best-of-k curve of the trials."""
    tables: list[Table] = []
    sentences: list[str] = []
    players = _players(f)
    source, pairs = COMPARED, _from_verdicts(f, players)
    if not pairs:
        source, pairs = (
            "the judge's scores of single answers (the greater wins, equal ones tie)",
            _from_rewards(f, players),
        )
    if pairs:
        met = _linked(players, pairs)
        fitted = tournament(met, {pair: scores for pair, scores in pairs.items() if set(pair) <= set(met)})
        tables += [_strengths(f, fitted), _matrix(fitted)]
        sentences = [*_sentences(fitted, source), *_silent(f, source)]
    curves = _curves(f)
    figures = {"trials_curve": (_CAPTION, _figure(f, curves))} if curves else {}
    if curves:
        tables.append(_trials(f, curves))
    return Section("tournament", "Tournament", tables, sentences, figures) if tables else None


_CAPTION = "Ranking metric to be expected of the best of k cells tried, picked on the selection prompts and read on the test prompts. Bands are 95 % intervals over prompts and seeds, for the cells of this grid."  # noqa: E501


def _linked(players: Mapping[str, list[str]], pairs: Mapping[tuple[str, str], Array]) -> list[str]:
    """The first player that is in any pair, and all that a chain of pairs links to it; in the order given."""
    linked = {next(player for player in players if any(player in pair for pair in pairs))}
    while more := {player for pair in pairs if linked & set(pair) for player in pair} - linked:
        linked |= more
    return [player for player in players if player in linked]


def _players(f: Findings) -> dict[str, list[str]]:
    """Run ids by player, the control first, the reference last."""
    chosen = {variant: c.ids for variant, c in f.chosen.items()}
    first = [f.results.control] if f.results.control in chosen else []
    return {v: chosen[v] for v in dict.fromkeys([*first, *chosen])} | {REFERENCE: [REFERENCE]}


def _from_rewards(f: Findings, players: Mapping[str, list[str]]) -> dict[tuple[str, str], Array]:
    scores = f.results.scores
    rewarded = scores[(scores["metric"] == REWARD) & scores["prompt"].map(f.results.splits).eq(TEST)]
    there = set(rewarded["run"])
    entered = {player: runs for player, runs in players.items() if runs and set(runs) <= there}
    runs = [run for ids in entered.values() for run in ids]
    # Means over groups: a reward stands under one group only.
    wide = (
        rewarded[rewarded["run"].isin(runs)]
        .pivot_table(index="run", columns=["prompt", "draw"], values="value")
        .dropna(axis=1)
    )
    draws = (
        wide.columns.to_frame(index=False).groupby("prompt")["draw"].nunique() if len(wide) else pd.Series(dtype=int)
    )
    # Draws that some lack leave some prompts with fewer; a prompt counts once whatever is left of it.
    prompts, most = sorted(draws.index), int(draws.max()) if len(draws) else 0
    if len(entered) < 2 or len(prompts) < FEWEST:
        return {}
    rewards = {player: np.full((len(ids), len(prompts), most), np.nan) for player, ids in entered.items()}
    for place, prompt in enumerate(prompts):
        values = wide[prompt]
        for player, ids in entered.items():
            rewards[player][:, place, : values.shape[1]] = values.loc[ids].to_numpy()
    return round_robin(rewards)


def _from_verdicts(f: Findings, players: Mapping[str, list[str]]) -> dict[tuple[str, str], Array]:
    """Scores of the pairs that met, every seed with every seed, on the test prompts for which none is missing.

    Empty where there is no file, or another judge than the one that gave this report's scores wrote it.
    """
    file = f.results.folder / VERDICTS
    if not file.is_file() or _of_another_judge(f):
        return {}
    known = pd.read_parquet(file, columns=["prompt", "draw", "a", "b", "score"]).dropna(subset="score")
    mirrored = known.rename(columns={"a": "b", "b": "a"}).assign(score=1 - known["score"])
    both = pd.concat([known, mirrored])
    both = both[both["prompt"].map(f.results.splits).eq(TEST)]
    wide = both.pivot_table(index=["a", "b"], columns="prompt", values="score")
    there = set(wide.index)
    games = {pair: [(a, b) for a in players[pair[0]] for b in players[pair[1]]] for pair in combinations(players, 2)}
    games = {pair: matches for pair, matches in games.items() if matches and set(matches) <= there}
    table = (
        wide.loc[[game for matches in games.values() for game in matches]].dropna(axis=1) if games else pd.DataFrame()
    )
    if table.shape[1] < FEWEST:
        return {}
    return {
        (one, two): np.stack([table.loc[[(a, b) for b in players[two]]].to_numpy() for a in players[one]])
        for one, two in games
    }


def _of_another_judge(f: Findings) -> bool:
    """Whether the verdicts are not by the judge whose scores this report shows."""
    folder = f.results.folder / FOLDER
    judges = {settings.needs["judge"] for settings in f.results.settings.values() if "judge" in settings.needs}
    return bool(judges) and TournamentRecord.lies_in(folder) and TournamentRecord.read(folder).judge not in judges


def _sentences(fitted: Tournament, source: str) -> list[str]:
    sentences = [
        f"Read from {source}, same prompt and same draw; every seed of one player meets every seed of the other."
    ]
    if fitted.separated:
        sentences.append(
            "Some players never lose to the others: their strengths are infinite, and the numbers shown rest on half a tied prompt "
            "added to every pair. Only the order means something."
        )
    if fitted.misfit is not None and fitted.worst is not None:
        a, b, gap = fitted.worst
        fits = "is no evidence against" if fitted.misfit >= 0.05 else "speaks against"
        sentences.append(
            f"The test of fit (p {probability(fitted.misfit)}) {fits} one strength per player; the pair explained worst is "
            f"{a} against {b}, observed less expected {gap:+.3f}."
        )
    size = len(fitted.players)
    apart = size * (size - 1) // 2 - len(fitted.observed) // 2
    if apart:
        sentences.append(
            f"{apart} pairs did not meet: their comparison rests on the players that both met, and the matrix leaves them out."
        )
    rings = "; ".join(" beats ".join((*ring, ring[0])) for ring in fitted.cycles[:3])
    sentences.append(
        f"{len(fitted.cycles)} rings among the observed means: {rings}."
        if rings
        else "The observed order is transitive."
        if not apart
        else "No ring among the pairs that met."
    )
    return sentences


def _silent(f: Findings, source: str) -> list[str]:
    """What is missing of the judge's comparisons."""
    folder = f.results.folder / FOLDER
    missing = TournamentRecord.read(folder).missing if source == COMPARED and TournamentRecord.lies_in(folder) else 0.0
    if not missing:
        return []
    return [
        f"The judge gave no verdict on {missing:.1%} of these comparisons; a prompt without one is left out for all players. "
        "Which verdicts are missing is seldom chance."
    ]


def _strengths(f: Findings, fitted: Tournament) -> Table:
    base = fitted.players[0]
    rows = []
    for player in sorted(fitted.players, key=lambda p: -fitted.strength[p].value):
        row: Row = {"player": player, "beta": f.label(f.chosen[player]) if player in f.chosen else ""}
        put(row, "strength", fitted.strength[player])
        row["against_first"] = fitted.expected.get((player, base))
        row["mean_expected"] = float(np.mean([fitted.expected[player, o] for o in fitted.players if o != player]))
        estimate = fitted.strength[player]
        row |= {"n_prompts": estimate.n_prompts, "seeds": estimate.seeds if player != REFERENCE else None}
        rows.append(row)
    columns = [
        Column("Player", "player"),
        Column("β", "beta"),
        Column(f"Strength less {base}'s, logits", "strength", 2, interval=True, signed=True),
        Column(f"Expected win-rate against {base}", "against_first", 2),
        Column("Against all others", "mean_expected", 2),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    note = (
        "Bradley-Terry strengths at the selected cells, on test prompts; ties count half. The errors are clustered by prompt, the spread "
        "between seeds is added; not adjusted for the number of players."
    )
    return Table("tournament_strengths", "Strengths", pd.DataFrame(rows, dtype=object), columns, note)


def _matrix(fitted: Tournament) -> Table:
    ranked = sorted(fitted.players, key=lambda p: -fitted.strength[p].value)
    rows = []
    for player in ranked:
        row: Row = {"player": player}
        for place, other in enumerate(ranked):
            put(row, f"against_{place}", fitted.observed.get((player, other)))
            row[f"expected_{place}"] = fitted.expected.get((player, other))
        any_pair = next(iter(fitted.observed.values()))
        rows.append(row | {"n_prompts": any_pair.n_prompts})
    columns = [
        Column("Wins of", "player"),
        *(Column(f"against {o}", f"against_{i}", 2, interval=len(ranked) <= ROOMY) for i, o in enumerate(ranked)),
        Column("Prompts", "n_prompts", 0),
    ]
    note = "Observed share of matches won by the row's player, ties half, with 95 % interval where there is room (all are in the CSV, as are the shares that the strengths expect: columns in the order of the rows)."  # noqa: E501
    return Table("tournament_matrix", "Round robin", pd.DataFrame(rows, dtype=object), columns, note)


def _curves(f: Findings) -> dict[str, list[Estimate]]:
    """Best of k for each variant with two finished cells or more."""
    if f.ranking is None or f.direction == "none":
        return {}
    sign = -1.0 if f.direction == "lower" else 1.0
    curves = {}
    for variant in f.variants:
        trials, means = [], []
        for c in (c for c in f.configurations if c.variant == variant and c.done):
            table, picked = f.results.table(f.ranking, c.ids, None, TEST), f.estimate(c.ids, f.ranking, SELECTION)
            if picked is not None and table.shape[1] >= FEWEST:
                trials.append(table)
                means.append(sign * picked.value)
        shared = sorted(set.intersection(*(set(t.columns) for t in trials))) if trials else []
        if len(trials) > 1 and len(shared) >= FEWEST:
            curves[variant] = best_trials(
                [t[shared].to_numpy(dtype=float) for t in trials], means, range(1, len(trials) + 1)
            )
    return curves


def _trials(f: Findings, curves: Mapping[str, Sequence[Estimate]]) -> Table:
    rows = []
    for variant, curve in curves.items():
        row: Row = {"variant": variant}
        for k, estimate in enumerate(curve, 1):
            put(row, f"best_of_{k}", f.bounded(estimate))
        rows.append(row | {"n_prompts": curve[0].n_prompts, "seeds": curve[0].seeds})
    most = max(len(curve) for curve in curves.values())
    columns = [
        Column("Variant", "variant"),
        *(Column(f"best of {k}", f"best_of_{k}", 2, interval=most <= ROOMY) for k in range(1, most + 1)),
        Column("Prompts", "n_prompts", 0),
        Column("Seeds", "seeds", 0),
    ]
    label = f.results.label(f.ranking or "")
    note = f"{label.capitalize()} on the test prompts to be expected of the best of k cells tried at random from this grid, the best being picked on the selection prompts."  # noqa: E501
    return Table("best_of_trials", "What trying more cells brings", pd.DataFrame(rows, dtype=object), columns, note)


def _figure(f: Findings, curves: Mapping[str, Sequence[Estimate]]) -> Figure:
    figure, (axis, *_) = canvas(1, 1, 8.2, 3.2)
    for variant, raw in curves.items():
        curve = [f.bounded(estimate) for estimate in raw]
        style, ks = look(f, variant), range(1, len(curve) + 1)
        axis.plot(ks, [e.value for e in curve], lw=1.4, ms=5, label=entry(f, variant), **style)
        if variant in f.foremost:
            axis.fill_between(
                ks, [e.low for e in curve], [e.high for e in curve], color=style["color"], alpha=0.13, lw=0
            )
    axis.set_xticks(range(1, max(len(curve) for curve in curves.values()) + 1))
    axis.set_xlabel("cells tried")
    axis.set_ylabel(plain(f.results.label(f.ranking or "")))
    legend(figure, axis)
    return figure
