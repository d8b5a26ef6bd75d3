"""From a command line to settings: what scoring alone refuses."""

import pytest

from dpobench.errors import UnknownName, UserError
from dpobench.experiment.options import Options

FOLDERS = {"model": "base", "data": "pairs.jsonl"}


@pytest.mark.parametrize(
    "assignment",
    [
        "studies={ rounds = 3 }",
        "seeds=[0, 1]",
        "preset=tiny",
        "data.heldout_share=0.2",
        "data.limit=5",
        "recipe.learning_rate=1e-4",
    ],
)
def test_a_setting_that_only_training_reads_is_refused_where_nothing_is_trained(assignment):
    with pytest.raises(UserError, match=f"--set {assignment.partition('=')[0]}: it has no effect"):
        Options(**FOLDERS, assignments=[assignment]).scoring()


def test_settings_that_scoring_reads_are_taken():
    told = ["evaluation.draws=2", "recipe.max_tokens=64", "recipe.max_prompt_tokens=32", "data.on_bad_row=drop"]
    experiment = Options(**FOLDERS, assignments=told, control="dpo").scoring()
    assert (experiment.evaluation.draws, experiment.recipe.max_tokens, experiment.data.on_bad_row) == (2, 64, "drop")
    assert (experiment.model, experiment.data.source, experiment.control) == ("base", "pairs.jsonl", "dpo")
    with pytest.raises(UnknownName, match=r"evaluation\.draws"):
        Options(**FOLDERS, assignments=["evaluation.drawz=2"]).scoring()


def test_bare_objectives_have_no_meaning_where_checkpoints_are_scored():
    with pytest.raises(UserError, match="--objectives helpful="):
        Options(**FOLDERS, objectives=["auto"]).scoring()
