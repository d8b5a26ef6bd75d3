"""The command line as a user meets it: exact options, guesses at typing mistakes, no heavy import before it is needed."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from dpobench import UserError
from dpobench.cli import commands
from dpobench.testing.laws import LAW_NAMES

HEAVY = ("torch", "transformers", "datasets", "lm_eval", "pandas", "matplotlib", "scipy", "pydantic")


def imported(*arguments):
    code = f"import sys\nfrom dpobench.cli.commands import commands\ncommands.main({list(arguments)!r}, standalone_mode=False)\n"
    code += f"print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("run", "--help"),
        ("variants", "--help"),
        ("report", "--help"),
        ("variants",),
        ("evaluators",),
        ("judges",),
    ],
)
def test_help_and_the_list_of_variants_import_nothing_heavy(arguments):
    assert imported(*arguments) == []


@pytest.mark.parametrize("wrong", [("--variants", "dop"), ("--variants", "dpo", "--judge", "golt")])
def test_a_mistyped_name_is_refused_before_anything_heavy_is_imported(wrong):
    arguments = ["run", *wrong]
    code = "import sys\nfrom dpobench.cli.commands import commands\nfrom dpobench.errors import UnknownName\n"
    code += f"try:\n commands.main({arguments!r}, standalone_mode=False)\nexcept UnknownName as error:\n print(error)\n"
    code += f"print(*(m for m in {HEAVY!r} if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, heavy = done.stdout.splitlines()
    assert "Did you mean" in message
    assert heavy == ""


@pytest.mark.parametrize(
    ("judge", "settings", "message"),
    [
        ("gold", "function=nowhere.py:f", "no such file nowhere.py"),
        ("local", "model=nowhere/at/all", "no such folder"),
        ("reward_model", "model=nowhere/at/all", "no such folder"),
        ("imported", "file=nowhere.csv", "nowhere.csv"),
    ],
)
def test_an_unreachable_judge_is_refused_before_anything_is_computed(judge, settings, message):
    from dpobench.evaluation.settings import Evaluation
    from dpobench.experiment.validate import check_judges

    name, value = settings.split("=")
    with pytest.raises(UserError, match=message):
        check_judges(Evaluation(judge=judge, judge_settings={name: value}), may_pay=False)


def test_a_dry_run_tries_the_judge(dpobench):
    done = dpobench("run", "--preset", "tiny", "--variants", "dpo", "--dry-run", "--judge", "local")
    assert done.returncode == 2
    assert "the local judge needs a model" in done.stderr
    assert "Traceback" not in done.stderr


def test_options_of_run_are_pinned():
    names = {option for parameter in commands.run.params for option in parameter.opts}
    assert names == {
        "--variants", "--beta-grid", "--grid", "--lr-grid", "--seeds", "--control", "--preset", "--model", "--data", "--heldout",
        "--judge", "--tasks", "--objectives", "--checkpoints", "--label-noise", "--train-size", "--reference-quality", "--rounds",
        "--no-baselines",
        "--out", "--plugin", "-c", "--config", "--set", "--device", "--workers", "--threads", "--dry-run",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("group", "show", "check"),
    [("variants", ["--plot"], []), ("evaluators", [], ["--set"]), ("judges", [], ["--set"])],
)
def test_options_about_plugins_are_pinned(group, show, check):
    listed = {"list": commands.commands.commands[group], **commands.commands.commands[group].commands}
    names = {name: [o for p in command.params for o in p.opts if o.startswith("-")] for name, command in listed.items()}
    assert names == {"list": ["--plugin"], "show": show, "check": check, "new": ["--folder"]}


def test_commands_are_pinned():
    assert set(commands.commands.commands) == {
        "run",
        "report",
        "evaluate",
        "variants",
        "evaluators",
        "judges",
        "status",
        "doctor",
        "bench",
        "power",
    }


@pytest.mark.parametrize(
    ("arguments", "runs"),
    [
        (("--variants", "dpo,ipo", "--beta-grid"), 11),
        (("--variants", "dpo,ipo", "--beta-grid", "0.05,0.1"), 5),
        (("--variants", "dpo,ipo", "--beta-grid", "dpo=0.05,0.1", "--beta-grid", "ipo=0.1,0.5"), 5),
        (("--beta-grid", "--variants", "dpo,ipo"), 11),
        (("--variants", "cdpo", "--grid", "cdpo.flip=0.1,0.2"), 3),
        (("--variants", "dpo", "--seeds", "0,1,2", "--lr-grid", "1e-4,5e-4"), 12),
        (("--variants", "dpo"), 2),
        (("--variants", "dpo", "--no-baselines"), 1),
        # No noise, all pairs and the whole reference are the main experiment: (1 + 2 + 1 + 2 + 2) conditions, dpo and the baseline.
        (
            (
                "--variants",
                "dpo",
                "--label-noise",
                "0,0.1,0.3",
                "--train-size",
                "500",
                "--reference-quality",
                "--rounds",
                "3",
            ),
            16,
        ),
        (("--variants", "dpo", "--reference-quality", "0.2,1", "--seeds", "0,1"), 8),
    ],
)
def test_grids_unfold_as_written(arguments, runs):
    done = CliRunner().invoke(
        commands.commands, ["run", *arguments, "--dry-run"], standalone_mode=False, catch_exceptions=False
    )
    assert f"\n{runs} runs;" in "\n" + done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "--variants", "dppo"), "no variant is called 'dppo'. Did you mean 'dpo'?"),
        (("run",), "no variant is chosen"),
        (("rnu",), "no command is called 'rnu'. Did you mean 'run'?"),
        (("run", "--variant", "dpo"), "--variants"),
        (("run", "--variants", "dpo", "--set", "recipe.batchs=3"), "Did you mean 'recipe.batch'"),
        (("run", "--variants", "dpo", "--seeds", "a"), "--seeds 'a'"),
        (("run", "--variants", "dpo", "--model", "x", "--preset", "tiny"), "a preset brings its own model and data"),
        (("run", "--variants", "dpo", "--judge", "golden"), "Did you mean 'gold'"),
        (("run", "--variants", "dpo", "--plugin", "nowhere.py"), "no such file"),
        (("run", "--variants", "dpo", "-c", "nowhere.toml"), "nowhere.toml"),
        (("run", "--variants", "dpo", "--label-noise", "1.5"), "studies.label_noise.0 = 1.5"),
        (("run", "--variants", "dpo", "--label-noise", "0.1,0.1"), "0.1 is named twice"),
        (("run", "--variants", "dpo", "--train-size", "16"), "recipe.batch = 32"),
        (("run", "--variants", "dpo", "--model", "x", "--data", "y", "--reference-quality"), "the embedded default"),
        (("run", "--variants", "dpo", "--model", "x", "--data", "y", "--rounds", "2"), "name one with --judge"),
        (("report", "nowhere"), "no plan.json"),
        (("status", "nowhere"), "no plan.json"),
        (("variants", "show", "dppo"), "Did you mean 'dpo'"),
        (("variants", "show"), "no loss is named"),
        (("variants", "show", "dpo:heavy+sft"), "'heavy' is no positive weight"),
        (("variants", "check", "nowhere.py"), "no such file"),
        (("variants", "new", "dpo"), "exists already"),
        (("variants", "new", "My-Loss"), "no name for a loss"),
        (("evaluators", "show", "winrat"), "Did you mean 'winrate'"),
        (("evaluators", "check", "nowhere.py"), "no such file"),
        (("evaluators", "new", "kl"), "an evaluator called 'kl' exists already"),
        (("judges", "show", "golt"), "Did you mean 'gold'"),
        (("judges", "check", "nowhere.py"), "no such file"),
        (("judges", "new", "gold"), "a judge called 'gold' exists already"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, message, dpobench, tmp_path):
    done = dpobench(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []  # nothing was begun


def test_a_missing_model_is_named_before_anything_is_trained(dpobench, tmp_path):
    done = dpobench(
        "run", "--variants", "dpo", "--model", "./nowhere", "--data", "x.jsonl", "--out", "out", cwd=tmp_path
    )
    assert done.returncode == 2
    assert "model './nowhere': no such folder" in done.stderr


@pytest.mark.parametrize("kind", ["variants", "evaluators", "judges"])
def test_a_new_plugin_passes_its_own_test_and_the_laws(kind, dpobench, tmp_path):
    assert dpobench(kind, "new", "mine", "--folder", str(tmp_path)).returncode == 0
    checked = dpobench(kind, "check", str(tmp_path / "mine.py"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "laws hold" in checked.stdout
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{len(LAW_NAMES[kind.removesuffix('s')]) + 1} passed" in tested.stdout, tested.stdout


def test_a_judge_is_checked_under_the_settings_given(dpobench, tmp_path):
    (tmp_path / "strict.py").write_text(
        "import pandas as pd\nfrom dpobench import UserError, judge\n\n@judge(pointwise=True)\n"
        'def strict(prompts, completions, *, most: int = 0):\n    """As many points as letters."""\n'
        "    if not most:\n        raise UserError('set most')\n"
        "    return pd.DataFrame({'score': [float(min(most, len(text))) for text in completions]}, dtype=float)\n"
    )
    refused = dpobench("judges", "check", "strict.py", cwd=tmp_path)
    assert refused.returncode == 2
    assert "it refuses its settings: set most" in refused.stdout
    assert dpobench("judges", "check", "strict.py", "--set", "most=9", cwd=tmp_path).returncode == 0


def test_the_portraits_of_an_evaluator_and_of_a_judge_name_what_they_declare(dpobench):
    shown = dpobench("evaluators", "show", "winrate").stdout
    assert any(line.split()[:5] == ["win_rate", "share", "higher", "is", "better"] for line in shown.splitlines())
    assert "the reference against itself: win_rate = 0.5" in shown
    assert "most_missing = 0.05" in shown
    assert "two answers, shown in both orders" in dpobench("judges", "show", "imported").stdout


def test_a_portrait_names_source_grid_and_laws(dpobench):
    done = dpobench("variants", "show", "ipo")
    assert "arXiv:2310.12036" in done.stdout
    assert "sets a target margin in nats per token" in done.stdout
    assert "BROKEN" not in done.stdout


def test_doctor_finds_this_installation_ready(dpobench):
    done = dpobench("doctor")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1] == "ready"
