"""Which registered loss each case of golden/losses.json is, what is excused and why; see `golden.py` for the comparison."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpobench import Pairs
from tests.variants.golden import Case, Reading, Statistics, Term, View, deviations, evaluated
from tests.variants.golden_views import (
    as_means,
    as_the_authors_averaged,
    drawn,
    first_pair,
    ratio_of_gamma,
    stepped,
    with_prompts,
    without_reference,
)

Given = Mapping[str, Any]
Value = float | Callable[[Given], float]
Family = Callable[[Given], Reading]

# Cases that are compared with nothing: no registered loss, or numbers that are wrong.
EXCUSED = {
    "trl.ipo.empty_prompt": "ran on other sequences, whose log-probabilities are not recorded, and divides by one token more "
    "than it scored",
    "halos.ipo.at_init": "not a number: it counts the tokens whose log-ratio is not 0, of which there are none",
    "trl.f.js.ipo": "IPO on the scores of a Jensen-Shannon divergence, a combination that is not registered",
    "alignanything.simpo.subset": "divides by the length of prompt and response, and cuts response-only rows with the indices of "
    "whole sequences",
    "alignanything.orpo.subset": "infinite: it cuts response-only rows with the indices of whole sequences, which leaves some "
    "empty",
    "openinstruct.wpo.one_pair": "the weight is the product of both whole likelihoods, 3e-24 where means per token give "
    "7e-4, and is differentiated",
    "alpha_dpo_repo.rDPO": "the length term has the opposite sign of R-DPO's, an alpha below 0, which r_dpo does not accept",
    "discopop_repo.performance_adaptive_decay_logistic_loss": "another loss of the DiscoPOP search; not registered",
    "discopop_repo.combined_exp_logistic_loss": "another loss of the DiscoPOP search; not registered",
    "discopop_repo.policy_focused_loss": "another loss of the DiscoPOP search; not registered",
    "discopop_repo.adaptive_quantile_loss": "another loss of the DiscoPOP search; not registered",
    "discopop_repo.dynamic_blended_adaptive_quantile_loss": "another loss of the DiscoPOP search; not registered",
    "discopop_repo.adaptive_quantile_feedback_loss": "another loss of the DiscoPOP search; not registered",
    "extreme.discopop_repo.cell": "another loss of the DiscoPOP search; not registered",
    "orpo_repo.mean_logps": "averages of log-probabilities with one position too many, and no loss; "
    "`orpo_repo.prompt_nll_True` and `.prompt_nll_False` are compared with them",
}
# Executions that ended in an error, so that there is nothing to compare.
FAILED = {
    "trl.f.alpha0.5.f64": "KeyError: its table of bounds for the exponent has no float64; the float32 case is compared",
    "liger.ipo": "NotImplementedError: it needs the number of tokens of each answer",
    "torchtune.HEAD.import": "NameError: the file uses a name that it does not import",
    "halos.slic.batch": "RuntimeError: adds one value per pair to one per token; the micro-batch of one pair is compared",
    "openinstruct.wpo.batch": "RuntimeError: multiplies one value per pair by one per token",
    "swift.ipo.padded": "RuntimeError: divides one value per token by one per answer",
    "alignanything.kto": "AssertionError where one response is the beginning of the other",
    "alignanything.simpo": "AssertionError where one response is the beginning of the other",
    "alignanything.orpo": "AssertionError where one response is the beginning of the other",
    "chipo.fork": "SyntaxError: the one implementation of chi-PO that was found does not compile",
}
# Single fields of cases that are otherwise compared.
LEFT_OUT: Mapping[str, Mapping[str, str]] = {
    "cal_dpo": {
        "per_pair": "every pair has the batch's mean calibration, where ours has its own; their means are compared"
    },
    "trl.apo_zero_unpaired.wu1.0": {"kl": "APO has no such anchor; it is reported as 0"},
    "mallows_repo.ipo": {"reference_entropy": "no part of this loss; compared where it is"},
    "mallows_repo.cauchy": {"reference_entropy": "no part of this loss; compared where it is"},
}
# Recorded as float64 with float32 in between, and how. These and float32 cases are held to 3e-6, all others to 5e-8.
SINGLE = {
    "trl.orpo.or_term": "casts to float32",
    "sampo.downsample": "sums in float32",
    "d2po": "powers of the discount in float32",
    "mallows_repo.mallows_dpo": "divides by the length times the logarithm of the vocabulary in float32",
    "mallows_repo.mallows_ipo": "divides by the length times the logarithm of the vocabulary in float32",
}
# Cases whose result was rounded to bfloat16, 8 significant bits: half a unit of the last is a share of 2^-9 at most.
BRAIN = {"orpo_repo.prompt_nll_True", "orpo_repo.prompt_nll_False"}
# Fields that are no part of a loss: descriptions, what a project logs (always log-ratios times beta, whatever its loss), and the
# second draw that SamPO makes for the reference, where ours has one draw for both.
LOGGED = {
    *("id", "loss", "source", "params", "dtype", "batch", "note", "pairs", "loss_shape", "log_ratio_margin"),
    *("chosen_rewards", "rejected_rewards", "true_chosen_reward_sum", "ref_logps_other_draw", "per_pair_other_draw"),
    *(f"logged_{what}" for what in ("reward_margin_mean", "accuracy", "chosen_reward_mean")),
    *("logged_chosen_reward_sum", "logged_rejected_reward_sum"),
}
# Registered losses that no other project's numbers cover.
UNSEEN = {"chipo": "the one implementation that was found does not compile"}
# Parts of matched losses that the recorded batch does not exercise, so that only values worked out by hand and identities hold them.
UNTRIED = {
    "wpo": "no product of weights is above 1, so the clamp does nothing",
    "kto_pair": "both batch means are negative and clamped to 0, so it equals half of apo_zero",
    "beta_dpo": "the batch's beta is clamped at 1e-3, whatever the gain, and nothing is dropped",
    "eps_dpo": "the steps are given, so the extrapolated and interpolated log-probabilities are not computed",
    "bco_pair": "the shift is that of a first batch",
}


# Deviation that rounding in float64 explains, with a divisor that some projects make larger by 1e-8.
EXACT = 5e-8


def tolerance(case: Case) -> float:
    """Largest deviation accepted, relative where numbers are large."""
    if case["id"] in BRAIN:
        return 2.0**-9
    return 3e-6 if case["dtype"] == "float32" or case["id"] in SINGLE else EXACT


# Hyper-parameters under the names that other projects have for them.


def strength(given: Given) -> float:
    return next(float(given[name]) for name in ("beta", "beta_pi", "tau", "gamma") if name in given)


def smoothing(given: Given) -> float:
    return next(float(given[name]) for name in ("label_smoothing", "epsilon", "ls") if name in given)


def key(*names: str) -> Callable[[Given], float]:
    """The first of some hyper-parameters that a case has."""
    return lambda given: next(given[name] for name in names if name in given)


def told(given: Given, value: Value) -> float:
    return value(given) if callable(value) else value


def term(
    loss: str, factor: Value = 1.0, view: View | None = None, statistics: Statistics | None = None, **params: Value
):
    """A registered loss whose hyper-parameters are numbers or functions of the case's."""
    return lambda given: Term(
        loss, {name: told(given, v) for name, v in params.items()}, told(given, factor), view, statistics
    )


def of(*terms: Callable[[Given], Term], means: bool = False, label: str = "") -> Family:
    """A weighted sum of registered losses."""
    return lambda given: Reading(tuple(one(given) for one in terms), means, label)


def plain(loss: str, factor: Value = 1.0, means: bool = False, **params: Value) -> Family:
    """One registered loss, times a factor; `beta` is the case's strength unless said otherwise."""
    return of(term(loss, factor, **{"beta": strength, **params}), means=means)


# TRL's loss types in a list of them.
TYPES = {"sigmoid": "dpo", "bco_pair": "bco_pair_no_shift", "sft": "sft"}


def listed(given: Given) -> Reading:
    """TRL's list of loss types with weights, summed here."""
    parts = [(TYPES[name], weight) for name, weight in zip(given["loss_type"], given["weights"], strict=True)]
    terms = tuple(Term(name, {} if name == "sft" else {"beta": given["beta"]}, weight) for name, weight in parts)
    return Reading(terms, label=" + ".join(f"{weight:g} {name}" for name, weight in parts))


def mixed(given: Given) -> Reading:
    """The same list as a mixture of the registry."""
    parts = [(TYPES[name], weight) for name, weight in zip(given["loss_type"], given["weights"], strict=True)]
    name = "+".join(f"{name}:{weight}" for name, weight in parts)
    params = {f"{name}.beta": given["beta"] for name, _ in parts if name != "sft"}
    return Reading((Term(name, params),), label=name)


def no_shift(pairs: Pairs) -> dict[str, float]:
    # TRL's mixture has BCO without its running shift.
    return {"delta": 0.0}


# The authors' averages start at 0 and are not corrected for it, ours are: what theirs are after the first batch is given to the
# loss, so that formulas are compared and not averages.


def first_beta_dpo(pairs: Pairs) -> dict[str, float]:
    # As the case's parameters put it: 0.1 x batch mean, and 0.9 + 0.1 x batch std.
    return {"mean": 0.1 * float(pairs.margin.mean()), "std": 0.9 + 0.1 * float(pairs.margin.std())}


def first_alpha_dpo(pairs: Pairs) -> dict[str, float]:
    return {"mean": 0.1 * float(pairs.mean_margin.mean()), "std": 0.1 * float(pairs.mean_margin.std())}


KL = term(
    "kto",
    beta=strength,
    desirable_weight=lambda g: g.get("desirable_weight", 1.0),
    undesirable_weight=lambda g: g.get("undesirable_weight", 1.0),
)
ODDS = {"weight": key("alpha", "beta")}
MEANS = {"beta": strength, "gamma_ratio": ratio_of_gamma}

# Family of a recorded case -> what it is among ours; where several readings are given, each must hold.
FAMILIES: Mapping[str, tuple[Family, ...]] = {
    "dpo": (plain("dpo"),),
    "cdpo": (plain("cdpo", flip=smoothing),),
    "rdpo": (plain("rdpo", flip=smoothing),),
    "hinge": (plain("hinge"),),
    "ipo_mean": (plain("ipo", means=True),),
    "ipo_sum": (plain("ipo_sum"),),
    "ipo_scaled_sum": (plain("ipo_scaled"), plain("ipo_sum", lambda g: g["beta"] ** 2)),
    # TRL 0.24 sets its smoothing to 1e-3 where none is asked for.
    "exo": (plain("exo", smoothing=lambda g: smoothing(g) or 1e-3),),
    "exo_author": (plain("exo_unnormalised", log_epsilon=lambda g: float(g["log_epsilon"])),),
    "discopop": (plain("discopop", tau=0.05),),
    "cauchy": (plain("cauchy"),),
    "odpo": (plain("odpo", alpha=key("alpha")),),
    "dpo_norm": (plain("dpo_norm", means=True),),
    "r_dpo": (plain("r_dpo", alpha=key("alpha", "len_reg_alpha")),),
    "ld_dpo_both": (plain("ld_dpo", alpha=key("ld_alpha")),),
    "ld_dpo_policy_only": (plain("ld_dpo_policy", alpha=key("ld_alpha")),),
    "sampo": (of(term("sampo", view=drawn, beta=strength)),),
    "d2po": (plain("d2po", gamma=key("gamma")),),
    "dpo_reference_free": (plain("dpo_ref_free"),),
    "cpo_pref": (plain("dpo_ref_free"),),
    "fdpo_forward_kl": (plain("f_dpo_forward_kl"), plain("f_dpo_alpha", alpha=1.0)),
    "fdpo_js": (plain("f_dpo_js"),),
    "fdpo_alpha": (plain("f_dpo_alpha", alpha=key("alpha", "f_alpha")),),
    "fdpo_alpha_trlconv": (plain("f_dpo_alpha", alpha=lambda g: 1 - g["f_alpha"]),),
    "kto": (of(KL),),
    "kto_pair_crosskl": (plain("kto_pair"),),
    "apo_zero": (plain("apo_zero"),),
    # A mean over 2B answers.
    "apo_zero_unpaired": (plain("apo_zero", 0.5),),
    "apo_down": (plain("apo_down"),),
    "nca": (plain("nca"),),
    "bco_pair_noshift": (plain("bco_pair_no_shift"),),
    "bco_pair_shift": (plain("bco_pair"),),
    "bco_unpaired": (plain("bco_pair", 0.5),),
    "sppo_hard": (plain("sppo_hard"),),
    "sppo_hard_halved": (plain("sppo_hard", 0.5),),
    "sppo_soft": (plain("sppo_soft"),),
    "cal_dpo": (plain("cal_dpo", weight=0.5),),
    "dpop": (plain("dpop", penalty=key("lam", "dpo_positive_lambda")),),
    "aot_paired": (plain("aot", flip=smoothing),),
    "aot_unpaired": (plain("aot_unpaired", flip=smoothing),),
    "dr_dpo": (plain("dr_dpo", temperature=key("beta_prime")),),
    "beta_dpo": (of(term("beta_dpo", statistics=first_beta_dpo, beta=strength, gain=key("a"), drop=key("filter"))),),
    "alpha_dpo": (
        of(
            term(
                "alpha_dpo", statistics=first_alpha_dpo, beta=strength, gamma_ratio=ratio_of_gamma, alpha=key("alpha")
            ),
            means=True,
        ),
    ),
    "eps_dpo": (of(term("eps_dpo", view=stepped, beta=strength, epsilon=key("epsilon"))),),
    "wpo": (plain("wpo"),),
    "wpo_noclamp": (plain("wpo_unclamped"),),
    "tdpo1": (plain("tdpo1"),),
    "tdpo2": (plain("tdpo2", alpha=key("alpha")),),
    "mallows_dpo": (plain("mallows_dpo", dispersion=key("neg_log_dispersion_mean")),),
    "mallows_ipo_sum": (plain("mallows_ipo", dispersion=key("neg_log_dispersion_mean")),),
    "dpo_plus_nll_token": (plain("dpo_nll_token", weight=1.0), listed, mixed),
    "dpo_plus_nll_sum": (plain("dpo_nll_sum", weight=key("sft_weight")),),
    "dpo_plus_nll_seqmean": (plain("dpo_nll", weight=key("sft_weight")),),
    "dpo_plus_nll_seqmean_perpair": (plain("dpo_nll", weight=key("alpha", "sft_weight")),),
    "mpo": (of(term("mpo", statistics=no_shift, beta=strength)), listed, mixed),
    "nll_token_mean": (of(term("sft")),),
    "simpo": (of(term("simpo", **MEANS), means=True),),
    "alphapo": (of(term("alphapo", **MEANS, alpha=key("alpha")), means=True),),
    "cpo": (plain("cpo", weight=key("cpo_alpha")),),
    # The part of ORPO beside the likelihood.
    "orpo_or_term": (of(term("orpo", **ODDS), term("sft", -1.0), means=True),),
    "orpo_respnll_seqmean": (of(term("orpo_seq", **ODDS), means=True),),
    "rrhf_rank": (of(term("rrhf", weight=2.0), term("rrhf", -1.0, weight=1.0)),),
    # The contrastive part: without the likelihood of gold answers.
    "tpo_contrastive": (of(term("tpo", beta=strength, weight=0.0)),),
    # One pair, and the likelihood averaged over 13 positions of which 9 are tokens.
    "slic_hf": (of(term("slic_hf", view=first_pair, delta=key("beta"), weight=lambda g: g["lambda_coef"] * 9 / 13)),),
    # Identities: CPO's other links are losses with a reference that says nothing.
    "cpo_pref_ls": (
        of(term("cdpo", view=without_reference, beta=strength, flip=smoothing), label="cdpo without a reference"),
    ),
    "cpo_hinge": (of(term("hinge", view=without_reference, beta=strength), label="hinge without a reference"),),
    "cpo_ipo_mean": (
        of(term("ipo", view=without_reference, beta=strength), means=True, label="ipo without a reference"),
    ),
    "simpo_ls": (
        of(term("cdpo", view=as_means, beta=strength, flip=smoothing), means=True, label="cdpo on SimPO's margin"),
    ),
    # The extreme batch has names of its own.
    "sigmoid": (plain("dpo"),),
    "ipo": (plain("ipo"),),
    "exo_pair": (plain("exo", smoothing=smoothing),),
    "nca_pair": (plain("nca"),),
    "robust": (plain("rdpo", flip=smoothing),),
    "bco_pair": (plain("bco_pair_no_shift"),),
    "forward_dpo_loss": (plain("f_dpo_forward_kl"),),
    "js_dpo_loss": (plain("f_dpo_js"),),
}
PROMPTED = "orpo with the prompt's likelihood"
# Single cases that are not what their family says.
CASES: Mapping[str, tuple[Family, ...]] = {
    "extreme.trl.sigmoid.forward_kl": (plain("f_dpo_forward_kl"),),
    "extreme.trl.sigmoid.js_divergence": (plain("f_dpo_js"),),
    # TRL returns the part beside the likelihood with the opposite sign and subtracts it later.
    "trl.orpo.or_term": (of(term("orpo", -1.0, **ODDS), term("sft"), means=True),),
    # The length-normalised form.
    "trl.tpo.tpo-l": (of(term("simpo", **MEANS)),),
    "trl.orpo.full": (of(term("orpo", **ODDS), term("sft", -1.0), term("sft", view=with_prompts), label=PROMPTED),),
    "orpo_repo.prompt_nll_True": (
        of(
            term("orpo", view=as_the_authors_averaged, **ODDS),
            term("sft", -1.0, view=as_the_authors_averaged),
            term("sft", view=with_prompts),
            label=f"{PROMPTED}, averages as the authors have them",
        ),
    ),
    "orpo_repo.prompt_nll_False": (
        of(
            term("orpo", view=as_the_authors_averaged, **ODDS),
            term("sft", -1.0, view=as_the_authors_averaged),
            term("sft"),
            label="orpo, averages as the authors have them",
        ),
    ),
}


def read(file: Path) -> dict[str, Any]:
    """The recorded numbers; values per answer, chosen ones first, become values per pair."""
    golden = json.loads(file.read_text(encoding="utf-8"))
    for case in golden["cases"]:
        values = case.pop("per_example", case.get("per_pair")) or []
        if len(values) == 12:
            half = 6
            case["per_pair"] = [(a + b) / 2 for a, b in zip(values[:half], values[half:], strict=True)]
        if "per_pair_same_draw" in case:
            case["per_pair"] = case.pop("per_pair_same_draw")
        if case["id"] == "orpo_repo.mean_logps":
            golden["inputs"]["authors_mean_logps"] = case["authors_mean_logps"]
    return golden


def readings(case: Case) -> tuple[Reading, ...]:
    """What a case is among ours."""
    return tuple(family(case["params"]) for family in CASES.get(case["id"]) or FAMILIES[case["loss"]])


@dataclass(frozen=True)
class Compared:
    """A reading of a case and how far apart the numbers are.

    Args:
        case: the recorded case.
        reading: what it is among ours.
        apart: deviation of each field.
    """

    case: Case
    reading: Reading
    apart: Mapping[str, float]

    def worst(self, *, gradient: bool) -> float:
        """Largest deviation of gradients, or of all else; 0 where there is none."""
        return max((by for name, by in self.apart.items() if name.startswith("grad") == gradient), default=0.0)


def compared(golden: Mapping[str, Any]) -> list[Compared]:
    """Every reading of every case that is not excused."""
    return [
        Compared(case, reading, deviations(evaluated(case, reading, golden["inputs"]), LEFT_OUT.get(case["id"], ())))
        for case in golden["cases"]
        if case["id"] not in EXCUSED
        for reading in readings(case)
    ]
