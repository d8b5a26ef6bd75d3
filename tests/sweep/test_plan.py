"""The plan of an experiment: what is written down before anything is trained."""

from pathlib import Path

import pytest
from rich.console import Console

from dpobench.analysis.results import load
from dpobench.artifacts.files import FORMAT, write_json
from dpobench.artifacts.records import EvaluationRecord, RecipeRecord
from dpobench.errors import UserError
from dpobench.evaluation.settings import Evaluation
from dpobench.experiment.config import parse
from dpobench.sweep import external
from dpobench.sweep.plan import Machine, experiment_record, plan_jobs
from dpobench.sweep.status import summary
from dpobench.training.run import Recipe

WHERE = Machine("cpu", 1, 1, Path("unused"))
READERS = {
    "run": lambda out: plan_jobs(parse({"variants": ["dpo"]}), out, WHERE, Console(quiet=True)),
    "status": lambda out: summary(out),
    "report": lambda out: load(out),
    "evaluate": lambda out: external._refuse_experiment(out),
}


@pytest.mark.parametrize("command", READERS)
def test_a_folder_of_another_format_is_refused_by_every_command_and_stays_as_it_was(command, tmp_path):
    write_json(tmp_path / "plan.json", {"runs": [], "training": "abc"})
    with pytest.raises(UserError, match=rf"written in format 1, this dpobench reads format {FORMAT}; .* another --out"):
        READERS[command](tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["plan.json"]


def test_what_results_are_read_with_is_among_the_settings_and_all_of_these_come_back():
    assert set(RecipeRecord.model_fields) <= set(Recipe.model_fields)
    assert set(EvaluationRecord.model_fields) <= set(Evaluation.model_fields)
    experiment = parse({"variants": ["dpo", "ipo"], "evaluation": {"judge": "gold", "draws": 2, "pool": 0}})
    record = experiment_record(experiment, "mine", "ipo", ("dpo", "ipo"), (0,))
    assert Evaluation.model_validate(record.evaluation.model_dump(exclude_unset=True)) == experiment.evaluation
    assert Recipe.model_validate(record.recipe.model_dump()) == experiment.recipe
    assert (record.name, record.control, record.evaluation.draws) == ("mine", "ipo", 2)
