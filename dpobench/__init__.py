"""dpobench: which preference loss to train with, at which strength, and how sure that is."""

from importlib import import_module as _import_module
from pathlib import Path as _Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dpobench.api.results import Results, compare, load
    from dpobench.api.start import run
    from dpobench.artifacts.scores import Metric, score_rows
    from dpobench.data.prompts import Prompt
    from dpobench.errors import DpobenchError, UserError
    from dpobench.evaluation.heldout import HeldOut
    from dpobench.evaluation.registry import evaluator, judge
    from dpobench.losses.pairs import Objective, Pairs, PerPair, PerToken, Ratio, Side
    from dpobench.losses.registry import loss
    from dpobench.models.checkpoint import Checkpoint


# In a wheel the plugin folders are inside this package; in a checkout they are its siblings.
if not (_here := _Path(__file__).resolve().parent).joinpath("variants").is_dir():
    __path__.append(str(_here.parent))


__version__ = "0.1.0"
# Public name -> the module that defines it. Resolved on first use, so that `dpobench --help` imports no torch.
_PUBLIC = {
    "Checkpoint": "models.checkpoint",
    "DpobenchError": "errors",
    "HeldOut": "evaluation.heldout",
    "Metric": "artifacts.scores",
    "Objective": "losses.pairs",
    "Pairs": "losses.pairs",
    "PerPair": "losses.pairs",
    "PerToken": "losses.pairs",
    "Prompt": "data.prompts",
    "Ratio": "losses.pairs",
    "Results": "api.results",
    "Side": "losses.pairs",
    "UserError": "errors",
    "compare": "api.results",
    "evaluator": "evaluation.registry",
    "judge": "evaluation.registry",
    "load": "api.results",
    "loss": "losses.registry",
    "run": "api.start",
    "score_rows": "artifacts.scores",
}

__all__ = [
    "Checkpoint",
    "DpobenchError",
    "HeldOut",
    "Metric",
    "Objective",
    "Pairs",
    "PerPair",
    "PerToken",
    "Prompt",
    "Ratio",
    "Results",
    "Side",
    "UserError",
    "__version__",
    "compare",
    "evaluator",
    "judge",
    "load",
    "loss",
    "run",
    "score_rows",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'dpobench' has no attribute {name!r}")
    return getattr(_import_module(f"dpobench.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
