"""The names of the metrics that the report reads, declared once.

A metric is read by its name, by its role (headline, distance, benchmark, preference, length), or as a companion of the distance. Whatever
else an evaluator declares is shown by `dpobench.report.sections.further`, which knows it by its declaration alone.
"""

from dpobench.analysis.findings import Findings
from dpobench.analysis.results import BENCHMARK

_NAMES: set[str] = set()


def _declare(name: str) -> str:
    _NAMES.add(name)
    return name


# Of answers.
ENDED, REPETITION, ENTROPY = _declare("ended"), _declare("repetition"), _declare("entropy")
DISTINCT_1, DISTINCT_2 = _declare("distinct_1"), _declare("distinct_2")
# Of held-out pairs; the length is of the reference's rows alone.
MARGIN, SATURATED, CHOSEN_LENGTH = _declare("margin"), _declare("saturated"), _declare("chosen_length")
CHOSEN_SHIFT, REJECTED_SHIFT = _declare("chosen_shift"), _declare("rejected_shift")
ACCURACY, MEAN_ACCURACY, OWN_ACCURACY = _declare("accuracy"), _declare("mean_accuracy"), _declare("own_accuracy")
LENGTH_DIFFERENCE = _declare("length_difference")
# Of a judge that scores one answer at a time, and of its verdicts.
REWARD, WIN_RATE = _declare("reward"), _declare("win_rate")
WIN_RATE_WORST, WIN_RATE_BEST = _declare("win_rate_worst"), _declare("win_rate_best")
MISSING, TIE = _declare("missing"), _declare("tie")
FIRST_SHOWN, INCONSISTENT = _declare("first_shown"), _declare("inconsistent")
# Of the negative and the positive control.
BEST_OF_WIN_RATE, BEST_OF_REWARD = _declare("best_of_win_rate"), _declare("best_of_reward")
SAME_WIN_RATE = _declare("same_win_rate")
# Of the judge where the answer is known.
JUDGE_SCORE, JUDGE_SAYS, LABEL_SAYS = _declare("judge_score"), _declare("judge_says"), _declare("label_says")
LENGTH_SAYS, JUDGE_LENGTH_DIFFERENCE = _declare("length_says"), _declare("judge_length_difference")
JUDGE_FIRST_SHOWN, JUDGE_INCONSISTENT = _declare("judge_first_shown"), _declare("judge_inconsistent")
JUDGE_UNPARSABLE, JUDGE_MISSING = _declare("judge_unparsable"), _declare("judge_missing")
JUDGE_ATTACK, JUDGE_PLAIN = _declare("judge_attack"), _declare("judge_plain")
# Of several objectives.
OBJECTIVE_WIN_RATE, OBJECTIVE_ACCURACY = _declare("objective_win_rate"), _declare("objective_accuracy")
OBJECTIVE_WORST, OBJECTIVE_BEST = _declare("objective_win_rate_worst"), _declare("objective_win_rate_best")
OBJECTIVE_MISSING = _declare("objective_missing")
# Of documents of benchmarks; the last two are read by `dpobench.analysis.documents`.
TRUNCATED = _declare("truncated")
CHANCE, TIED = _declare("chance"), _declare("tied")
# The log-ratio of the policy's own answers, nats: the implicit reward over beta, and a second estimate of the distance.
LOG_RATIO = _declare("kl_k1")
# What may follow the name of the distance: the same by another estimate, of other answers, or by part.
PER_TOKEN, SECOND_ESTIMATE, FORWARD = "per_token", "k1", "forward"
POSITION, NOISE_FLOOR, CUT = "position", "noise_floor", "truncated"
COMPANIONS = (PER_TOKEN, SECOND_ESTIMATE, FORWARD, POSITION, NOISE_FLOOR, CUT)


def names() -> frozenset[str]:
    """The metrics that are read by name, whatever their role."""
    return frozenset(_NAMES)


def companion(f: Findings, suffix: str) -> str:
    """Name of a companion of the distance.

    Example:
        `companion(findings, PER_TOKEN)` is "kl_per_token" where the distance is called "kl".
    """
    return f"{f.distance}_{suffix}"


def read_somewhere(f: Findings) -> frozenset[str]:
    """All metrics of an experiment that some section reads: by name, by role, as a companion of the distance."""
    by_role = {f.headline, f.distance, f.preference, f.length, *f.results.of_role(BENCHMARK)} - {None}
    return names() | {str(name) for name in by_role} | {companion(f, suffix) for suffix in COMPANIONS}
