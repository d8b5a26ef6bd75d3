"""The laws a preference loss must keep, verified on a few small batches before anything is trained.

What `@loss(...)` declares is not believed but tried: `check` tells what became of every law, `require` refuses a loss that
breaks one. A loss is called with exactly what it declares; what is not declared is absent. What is declared must suffice, and
must be needed at the loss's defaults. A loss of a few lines takes some milliseconds.

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
| `direction` | the pull has the sign that `gradient` promises, at every margin |
| `start` | the value where the policy equals the reference is the declared one |
| `shift` | a loss with a start knows log-ratios only |
| `strength` | every hyper-parameter with a grid changes value or gradient |
| `probability` | a loss that `states_probability` is logistic in beta x margin |
"""

from dpobench.testing.laws import Law, check, require

__all__ = ["Law", "check", "probe", "require"]
