"""What all runs of an experiment share, made once: tokens, the reference's log-probabilities, its answers and scores."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dpobench.artifacts.files import MANIFEST, building, digest, seal, sealed, verify
from dpobench.artifacts.provenance import environment
from dpobench.artifacts.records import ProvenanceRecord
from dpobench.data.prompts import PROMPTS, write_prompts
from dpobench.data.tokens import TokenPair, pairs_hash, write_pairs
from dpobench.evaluation.objectives import objective_file, pairs_key
from dpobench.evaluation.plan import HELDOUT, ScoringPlan
from dpobench.evaluation.score import score
from dpobench.losses.quantities import NEEDS
from dpobench.models.checkpoint import Checkpoint, check_vocabulary, load_model, load_tokenizer
from dpobench.models.generate import STREAM
from dpobench.models.protocols import CausalLM
from dpobench.sweep.inputs import Inputs, Say
from dpobench.training.reference import EXTRA, PAIRS, mismatched, reference_quantity, score_pairs, write_extra
from dpobench.training.run import HARNESS, Recipe

# The reference draws from a stream that no run shares: against coupled draws a win-rate would be another quantity.
REFERENCE_SEED = 2**32


def training_folder(
    inputs: Inputs, out: Path, recipe_precision: str, device: str, say: Say = lambda line: None
) -> Path:
    """Tokens with the reference's log-probabilities, computed once and shared by every run.

    The key holds the harness version, weights, tokenizer, token ids and precision; no variant and no beta.
    """
    key = digest("training", HARNESS, inputs.model_hash, pairs_hash(inputs.train), recipe_precision)
    folder = out / "reference" / key
    if sealed(folder):
        verify(folder)
        return folder
    say("reference: log-probabilities of the training pairs")
    with building(folder) as part:
        write_pairs(part / PAIRS, with_reference(inputs.model, inputs.train, device, recipe_precision))
        write_provenance(part, device, recipe_precision, inputs.model_hash)
        seal(part)
    return folder


def write_provenance(folder: Path, device: str, precision: str, model_hash: str, need: str = "") -> None:
    """Write down where the files of a folder of shared inputs came from."""
    made = environment(device, precision, model_hash=model_hash)
    ProvenanceRecord(**dict(made), need=need).write(folder)


def need_folders(
    inputs: Inputs, shared: Path, needs: Collection[str], recipe: Recipe, device: str, say: Say = lambda line: None
) -> dict[str, Path]:
    """What losses declared that is computed from the reference or the other pairs: each once, in a folder next to `shared`.

    Args:
        inputs: the training pairs.
        shared: their folder, from `training_folder`.
        needs: what any chosen loss declared.
        recipe: precision and limits.
        device: where the reference runs.
        say: shows a line to the user.

    Raises:
        UserError: the pairs cannot give what is needed.
    """
    folders = {}
    for need in [NEEDS[name] for name in sorted(needs) if NEEDS[name].source in ("reference", "pairs")]:
        folder = shared.with_name(digest("need", HARNESS, need.name, shared.name, recipe.max_tokens))
        folders[need.name] = folder
        if sealed(folder):
            verify(folder)
            continue
        say(f"reference: {need.name.replace('_', ' ')} of the training pairs")
        with building(folder) as part:
            if need.source == "pairs":
                crossed = mismatched(inputs.train, recipe.max_tokens)
                write_pairs(part / PAIRS, with_reference(inputs.model, crossed, device, recipe.precision))
            else:
                with _reference_model(inputs.model, device, recipe.precision) as model:
                    write_extra(part / EXTRA, reference_quantity(model, need, inputs.train))
            write_provenance(part, device, recipe.precision, inputs.model_hash, need.name)
            seal(part)
    return folders


@contextmanager
def _reference_model(model_folder: Path, device: str, precision: str) -> Iterator[CausalLM]:
    """The reference, loaded in the arithmetic that the runs use."""
    import torch

    model = load_model(model_folder, device=device)
    check_vocabulary(model, load_tokenizer(model_folder))
    with torch.autocast(device.partition(":")[0], dtype=torch.bfloat16, enabled=precision == "bf16"):
        yield model


def with_reference(model_folder: Path, pairs: Sequence[TokenPair], device: str, precision: str) -> list[TokenPair]:
    """The pairs with the log-probabilities of both sides under a reference, in the arithmetic that the runs use."""
    with _reference_model(model_folder, device, precision) as model:
        return score_pairs(model, pairs)


def heldout_folder(
    inputs: Inputs, planned: Callable[[str], ScoringPlan], out: Path, device: str, say: Say = lambda line: None
) -> Path:
    """Held-out prompts and pairs, with the reference's log-probabilities, answers and scores."""
    prompts = [(p.id, p.token_ids, p.chosen) for p in inputs.prompts]
    sampling = [inputs.evaluation.sampling.__dict__, STREAM, *pairs_key(inputs.objectives)]
    key = digest("heldout", HARNESS, inputs.model_hash, pairs_hash(inputs.heldout), prompts, sampling)
    folder = out / "reference" / key
    plan = planned(key)
    files = [PROMPTS, HELDOUT, *(objective_file(folder, name).name for name in inputs.objectives)]
    if sealed(folder):
        verify(folder)
    elif not all((folder / name).is_file() for name in files):
        # Where they are, an earlier process was ended while it scored: each file is whole, and scoring goes on.
        say("reference: log-probabilities of the held-out pairs")
        with building(folder) as part:
            write_prompts(part, inputs.prompts)
            write_pairs(part / HELDOUT, with_reference(inputs.model, inputs.heldout, device, "float32"))
            for name, pairs in inputs.objectives.items():
                write_pairs(objective_file(part, name), with_reference(inputs.model, pairs, device, "float32"))
            write_provenance(part, device, "float32", inputs.model_hash)
    say("reference: answers and scores")
    checkpoint = Checkpoint(inputs.model, inputs.model, device, reference_hash=inputs.model_hash)
    (folder / MANIFEST).unlink(missing_ok=True)
    score(
        checkpoint,
        folder,
        folder,
        inputs.evaluation,
        plan,
        seed=REFERENCE_SEED,
        progress=lambda name: say(f"reference: {name}"),
    )
    seal(folder)
    return folder
