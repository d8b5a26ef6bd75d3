"""The laws that losses, evaluators and judges must keep, verified in seconds before anything is trained or scored.

What a decorator declares is verified, not trusted: `check` returns the result of every law, `require` refuses a plugin that
breaks one, and a test class that inherits from `LossTests`, `EvaluatorTests` or `JudgeTests` makes each law a test.

A loss is called on a few small batches with exactly what it declares; what is not declared is absent. What is declared must suffice,
and must be needed at the loss's defaults. A loss of a few lines takes some milliseconds.

| law | what is tried |
|---|---|
| `declaration` | names, units, grids, bounds and functions that are declared exist and fit together |
| `columns` | intervals can be read; every column changes value or gradient |
| `statistics` | `init` gives numbers; `update` is pure, finite, blind to order and padding; every statistic has an effect |
| `shape` | one value per pair, of losses and of the two parts of every ratio, in the dtype of the log-probabilities |
| `untouched` | nothing that is given is changed in place |
| `denominators` | of ratios: positive, and known before the policy is |
| `gradient` | it reaches the policy and is not zero where training starts |
| `finite` | value and gradient, up to ten thousand nats, at the ends of columns, for one pair, for pairs all alike |
| `deterministic` | two calls agree; no random numbers are drawn |
| `needs` | everything in `needs` changes value or gradient |
| `permutation` | the order of the pairs does not matter |
| `separability` | a part of the batch has the losses and denominators that it has in the whole, unless `couples_batch` |
| `padding` | what stands at masked positions does not matter |
| `derivative` | the gradient is the slope of the value, unless `stops_gradient` |
| `reference` | the reference matters if and only if it is declared to |
| `direction` | the gradient has the sign that `gradient` promises, at every margin |
| `start` | the value where the policy equals the reference is the declared one |
| `shift` | a loss with a start knows log-ratios only |
| `strength` | every hyper-parameter with a grid changes value or gradient |
| `probability` | a loss that `states_probability` is logistic in beta x margin |

An evaluator is called on two tiny models, a few answers and pairs, and judges of both kinds: with exactly what it declares in
`needs`, and with everything there is.

| law | what is tried |
|---|---|
| `declaration` | docstring, metrics with unit and label, known needs, settings within bounds |
| `needs` | with what it declares alone it runs |
| `columns` | the columns of `score_rows`, finite values, declared metrics, no row twice |
| `metrics` | every declared metric is produced in some situation |
| `deterministic` | two calls with one seed agree |
| `untouched` | answers, pairs and weights stay as they are |
| `order` | the order of prompts and answers does not matter |
| `at_reference` | the reference scored against itself has the values declared for it |

A judge is called with five answers, or five pairs of answers.

| law | what is tried |
|---|---|
| `declaration` | docstring; `check` and `estimate` take the judge's settings |
| `settings` | the settings are accepted, by `check` and by the judge |
| `shape` | a row per answer or comparison, none for empty lists |
| `verdicts` | scores are finite or NaN; `p_first` lies in [0, 1] or is NaN, and fits `verdict` |
| `untouched` | the lists that it is given stay as they are |
| `deterministic` | two calls give the same verdicts, unless `deterministic=False` |
| `order` | the order of the prompts does not matter, likewise |
| `alone` | an answer alone has the verdict that it has among others, likewise |
"""

from dpobench.testing.examples import example_pairs
from dpobench.testing.inherit import EvaluatorTests, JudgeTests, LossTests
from dpobench.testing.law import Law
from dpobench.testing.laws import check, require

__all__ = [
    "EvaluatorTests",
    "JudgeTests",
    "Law",
    "LossTests",
    "check",
    "example_pairs",
    "probe",
    "require",
]
