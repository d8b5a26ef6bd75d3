"""The plan of an experiment: what is written down before anything is trained."""

from pathlib import Path

import pytest
from rich.console import Console

from dpobench.analysis.results import load
from dpobench.artifacts.files import FORMAT, write_json
from dpobench.errors import UserError
from dpobench.experiment.config import parse
from dpobench.sweep import external
from dpobench.sweep.plan import Machine, plan_jobs
from dpobench.sweep.status import summary

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
