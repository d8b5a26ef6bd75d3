"""The list, the portrait, the verdict and the template that a user of the command line sees."""

import importlib.metadata
import subprocess
import sys

import pytest
from click.testing import CliRunner

from dpobench.cli import commands
from dpobench.errors import UnknownName, UserError
from dpobench.evaluation.registry import evaluators, judges
from dpobench.gallery import lines as shared_lines
from dpobench.gallery import portrait, starter, verdict
from dpobench.losses.registry import LossRegistry, variants
from dpobench.losses.spec import UNITS
from dpobench.testing.laws import LAW_NAMES
from dpobench.testing.loss_laws import LAWS

# Beside these the declaration is one.
LAWS_IN_ALL = len(LAWS) + 1
PLUGIN = '''"""{title}"""
from dpobench import loss

GRID = (0.1, 0.25)
DEFAULT = 0.25


@loss(source="{source}", beta_grid=GRID{declared})
def {name}(pairs, *, beta: float = DEFAULT):
    """A loss."""
    return {formula}
'''


@pytest.fixture
def own(monkeypatch):
    """The shipped losses in a registry of this test's own, which the gallery then shows."""
    registry = LossRegistry()
    monkeypatch.setattr(portrait, "variants", registry)
    return registry


@pytest.fixture
def write(tmp_path, own):
    def plugin(name="mine", source="none", declared="", formula="-beta * pairs.margin"):
        file = tmp_path / f"{name}.py"
        file.write_text(PLUGIN.format(title="Mine.", name=name, source=source, declared=declared, formula=formula))
        return file

    return plugin


def rows():
    """Cells of every line about a loss, by name."""
    return {
        cells[0].strip(): cells
        for line in portrait.listing()
        if len(cells := [cell for cell in line.split("  ") if cell]) == 6
    }


def test_every_loss_has_a_line_with_needs_unit_grid_and_class():
    found = {name: [cell.strip() for cell in cells] for name, cells in rows().items()}
    assert set(found) == {*variants.names(), "variant"}
    assert found["dpo"][1:5] == ["-", "1/nat", "0.01 0.05 [0.1] 0.3 0.5", "monotone"]
    assert found["ipo"][1:5] == ["-", "target, nat/token", "[0.1] 0.5 1 3 10", "target"]
    assert found["kto"][1] == "mismatched, batch"
    assert found["beta_dpo"][1] == "noise, batch, running"
    assert found["odpo"][1] == "score_chosen, score_rejected"
    assert found["orpo"][2] == "weight"


@pytest.mark.parametrize("name", variants.names())
def test_what_is_read_from_a_file_is_what_the_loss_declares(name):
    (card,) = (card for card in portrait.cards()[0] if card.name == name)
    variant = variants.get(name)
    assert card.grid == variant.beta_grid
    assert card.default == variant.parameters[variant.strength].default
    assert (card.unit, card.gradient, card.source) == (
        variant.unit,
        variant.spec.gradient,
        variant.spec.source,
    )
    assert card.reference == variant.spec.reference
    assert card.takes == (*variant.needs, *variant.columns)
    assert card.batch == ("batch",) * variant.couples_batch + ("running",) * variant.keeps_statistics


def test_losses_are_grouped_by_what_they_take_and_sorted():
    groups: list[list[str]] = []
    for line in portrait.listing()[1:]:
        if not line:
            groups.append([])
        else:
            groups[-1].append(line.split(" ")[0])
    policy_and_reference, policy, batch, more, _ = (names[1:] for names in groups)
    assert {"dpo", "ipo", "sampo"} <= set(policy_and_reference)
    assert {"simpo", "cpo", "orpo"} <= set(policy)
    assert {"kto", "dr_dpo", "bco_pair", "beta_dpo"} <= set(batch)
    assert {"wpo", "odpo", "tpo", "tdpo1"} <= set(more)
    for names in (policy_and_reference, policy, batch, more):
        assert names == sorted(names)


@pytest.mark.parametrize("width", [120, 160])
def test_a_line_fits_and_loses_nothing_but_the_end_of_its_source(width):
    for line, full in zip(portrait.listing(width), portrait.listing(1000), strict=True):
        assert len(line) <= width
        assert full == line or (line.endswith("…") and full.startswith(line[:-1]))
    assert any(line.endswith("…") for line in portrait.listing(width))


def test_the_list_tells_how_a_sum_is_named():
    last = portrait.listing()[-1]
    assert last.startswith(f"{len(variants.names())} losses.")
    name = last.split("named like this: ")[1].split(" ")[0]
    assert variants.get(name).doc == "Weighted sum: 0.8 dpo + 0.2 bco_pair + 1 sft"


def test_the_list_follows_the_terminal_between_120_and_160(monkeypatch):
    for columns, longest in (("80", 120), ("140", 140), ("500", 160)):
        monkeypatch.setenv("COLUMNS", columns)
        assert max(map(len, portrait.listing())) == longest


def test_constants_of_the_file_are_read(own, write):
    own.add_file(write(source="by name"))
    (card,) = (card for card in portrait.cards()[0] if card.name == "mine")
    assert (card.grid, card.default, card.shown_grid) == ((0.1, 0.25), 0.25, "0.1 [0.25]")


def test_what_a_file_computes_is_listed_as_computed(own, write):
    file = write()
    file.write_text(file.read_text().replace("GRID = (0.1, 0.25)", "GRID = tuple(2.0**n for n in range(3))"))
    own.add_file(file)
    (card,) = (card for card in portrait.cards()[0] if card.name == "mine")
    assert card.shown_grid == "computed"


def test_a_decorator_that_is_not_called_is_named_and_costs_no_other_loss_its_line(own, tmp_path):
    file = tmp_path / "bare.py"
    file.write_text('from dpobench import loss\n\n\n@loss\ndef bare(pairs):\n    """Bare."""\n')
    own.add_file(file)
    lines = portrait.listing()
    assert lines[-1] == "not readable: bare.py: @loss of bare is not called; write @loss(...)"
    assert f"{len(variants.names())} losses" in lines[-2]


def test_an_installed_loss_that_does_not_import_is_named_and_costs_no_other_loss_its_line(own, monkeypatch):
    shipped = len(variants.names())
    point = importlib.metadata.EntryPoint("ghost", "a_package_that_nobody_has:ghost", "dpobench.variants")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: [point])
    lines = portrait.listing()
    assert lines[-1].startswith("not readable: variant 'ghost'")
    assert "a_package_that_nobody_has" in lines[-1]
    assert f"{shipped} losses" in lines[-2]


def test_a_portrait_tells_what_a_loss_needs_and_what_that_costs():
    arguments = "\n".join(portrait.portrait("kto"))
    assert "source    Ethayarajh et al. 2024, arXiv:2402.01306" in arguments
    assert "strength  beta: per nat of summed log-ratio" in arguments
    assert "class     monotone: never pushes the chosen answer down" in arguments
    assert "start     0.5 per pair" in arguments
    assert (
        "mismatched: `pairs.mismatched`: completions of other prompts under these, constant; cost: two sequences more"
        in arguments
    )
    assert (
        "the whole global batch at once, for pairs depend on one another; cost: one forward pass more a step"
        in arguments
    )
    assert "desirable_weight = 1.0  in (0, inf)  grid 1, 1.33" in arguments
    assert "Args:" in arguments
    assert f"Laws: {LAWS_IN_ALL} of {LAWS_IN_ALL} hold" in arguments


def test_a_portrait_without_reference_does_not_count_its_cost():
    assert "the reference's log-probabilities" not in "\n".join(portrait.portrait("simpo"))
    assert "the reference's log-probabilities; cost: once per experiment" in portrait.portrait("dpo")[9]


def test_a_portrait_of_a_column_names_its_interval():
    assert "  column win_probability of the data set, numbers in [0, 1]; cost: none" in portrait.portrait("sppo_soft")


def test_a_portrait_of_a_sum_names_the_parts():
    page = portrait.portrait("dpo:0.8+sft")
    assert page[:3] == [
        "dpo:0.8+sft",
        f"  part      0.8 dpo ({shared_lines.short_path(variants.get('dpo').file)}): {variants.get('dpo').spec.source}",
        f"  part      1 sft ({shared_lines.short_path(variants.get('sft').file)}): {variants.get('sft').spec.source}",
    ]
    assert "  sft.weight = 1.0  in (0, inf)  grid 1" in page


def test_a_portrait_can_be_drawn_in_the_terminal_or_into_a_file(tmp_path):
    drawn = portrait.portrait("dpo", "")
    assert "● beta = 0.1 (default)" in drawn
    assert portrait.portrait("dpo:0.8+sft", str(tmp_path / "sum.svg"))[-1] == f"drawn: {tmp_path / 'sum.svg'}"
    assert "dpo.beta = 0.1 (default)" in (tmp_path / "sum.svg").read_text()
    with pytest.raises(UserError, match="or none at all"):
        portrait.portrait("dpo", "ipo")


def test_a_broken_loss_has_a_portrait_and_no_drawing(own, write):
    own.add_file(write(formula="beta * pairs.margin"))
    page = portrait.portrait("mine")
    (place,) = (number for number, line in enumerate(page) if line.startswith("  BROKEN"))
    assert page[place].split()[1] == "direction"
    assert "the chosen answer is pushed down" in page[place + 1]
    with pytest.raises(UserError, match="cannot be drawn while it breaks the law 'direction'"):
        portrait.portrait("mine", "")


def test_a_portrait_of_a_senseless_declaration_tells_that_and_no_more(own, write):
    own.add_file(write(declared=', unit="per furlong"'))
    page = portrait.portrait("mine")
    assert any("'per furlong' is none of" in line for line in page)
    assert not any(line.startswith("Hyper-parameters") for line in page)


def test_an_unknown_name_in_a_sum_gets_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'dpo'"):
        portrait.portrait("dppo:0.8+sft")


def test_a_verdict_ends_with_what_the_harness_would_do(own, write):
    lines, passed = verdict.verdict(file := write(), own)
    assert passed
    assert lines[0] == f"mine: {LAWS_IN_ALL} of {LAWS_IN_ALL} laws hold"
    assert lines[-1] == f"accepted: dpobench trains with it: dpobench run --plugin {file} --variants mine ..."


def test_a_verdict_says_of_every_broken_law_why_and_what_to_do(own, write):
    lines, passed = verdict.verdict(write(formula="(beta * pairs.margin).mean()"), own)
    assert not passed
    (place,) = (number for number, line in enumerate(lines) if line.startswith("  BROKEN  shape "))
    assert "one value per pair" in lines[place]
    assert "leave the mean to the harness" in " ".join(lines[place + 1 : place + 3])
    assert lines[-1] == "refused: dpobench does not train with mine until this is mended: shape"


def test_a_reason_is_given_once(own, write):
    lines, _ = verdict.verdict(write(formula="(beta * pairs.margin).mean()"), own)
    assert sum("leave the mean to the harness" in line for line in lines) == 1
    assert sum(line.endswith("for the same reason as shape") for line in lines) > 5


def test_a_verdict_on_a_file_of_two_tells_them_apart(own, write):
    file = write()
    file.write_text(
        file.read_text() + '\n\n@loss(source="none", beta_grid=(0.1, 0.2))\ndef odd(pairs, *, beta: float = 0.1):\n'
        '    """Flipped."""\n    return beta * pairs.margin\n'
    )
    lines, passed = verdict.verdict(file, own)
    assert not passed
    assert lines[-2].startswith("accepted: ")
    assert lines[-2].endswith("--variants mine ...")
    assert lines[-1] == "refused: dpobench does not train with odd until this is mended: direction"


def test_every_unit_and_class_has_words():
    assert set(portrait._SHORT_UNITS) == set(UNITS)


def test_the_bare_plot_option_may_stand_before_the_name():
    for arguments in (["--plot", "dpo"], ["dpo", "--plot"]):
        done = CliRunner().invoke(commands.commands, ["variants", "show", *arguments], catch_exceptions=False)
        assert "● beta = 0.1 (default)" in done.output, arguments


@pytest.mark.parametrize("registry", [variants, evaluators, judges], ids=lambda registry: registry.kind)
def test_a_template_and_its_test_pass_as_they_are_and_are_formatted(registry, tmp_path):
    plugin, test = starter.write("one_with_quite_a_long_name", tmp_path, registry)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", tmp_path],
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"{len(LAW_NAMES[registry.kind]) + 1} passed" in done.stdout, done.stdout
    assert max(len(line) for file in (plugin, test) for line in file.read_text().splitlines()) <= 120
    assert "{" + "name}" not in plugin.read_text() + test.read_text()


@pytest.mark.parametrize("name", ["dpo", "My-Loss", "lambda", "1st", "a" * 41])
def test_a_name_that_cannot_be_used_is_refused(name, tmp_path):
    with pytest.raises(UserError):
        starter.write(name, tmp_path, variants)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_left_alone(tmp_path):
    (tmp_path / "test_mine.py").write_text("mine already")
    with pytest.raises(UserError, match=r"test_mine\.py exists already"):
        starter.write("mine", tmp_path, variants)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["mine already"]
