import pandas as pd
import pytest

from dpobench.report import text
from dpobench.report.table import Column, Table, interval, number, probability


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_text_that_a_spreadsheet_would_compute_gets_an_apostrophe(start):
    assert text.csv_cell(f"{start}1+1") == f"'{start}1+1"


def test_negative_numbers_stay_numbers_in_csv():
    frame = pd.DataFrame([{"a": -0.5, "b": "-x"}], dtype=object)
    assert Table("t", "T", frame, []).csv() == "a,b\n-0.5,'-x\n"


def test_control_and_bidirectional_characters_are_written_out_and_others_stay():
    assert text.visible("a\x1b[31m\u202eb\x00\ud800") == "a⟨U+001B⟩[31m⟨U+202E⟩b⟨U+0000⟩⟨U+D800⟩"
    assert text.visible("né 👩‍🍳\n\tβ") == "né 👩‍🍳\n\tβ"


def test_markdown_cannot_be_left():
    assert text.markdown("a|b`c`\n<b>[x](y)") == "a\\|b\\`c\\` &lt;b&gt;\\[x\\](y)"


def test_a_code_block_cannot_be_closed_from_inside():
    assert text.fenced("x ```` y").startswith("`````text\n")


def test_latex_signs_are_escaped():
    assert text.latex(r"50 % of $x_1 \n") == r"50 \% of \$x\_1 \textbackslash{}n"


def test_numbers_read_as_in_the_field():
    assert interval(0.62, 0.58, 0.66) == "0.62 [0.58, 0.66]"
    assert interval(-0.011, -0.051, 0.0301, 3, signed=True) == "−0.011 [−0.051, 0.030]"
    assert interval(0.5, 0.5, 0.5) == "0.50"
    assert number(None, 2) == number(float("nan"), 2) == "–"
    assert number(123456, 0) == "123,456"
    assert probability(0.00001) == "< 0.001"


def test_columns_with_nothing_in_them_are_not_printed_but_stay_in_the_csv():
    table = Table(
        "t", "T", pd.DataFrame([{"a": 1.0, "b": None}], dtype=object), [Column("A", "a", 1), Column("B", "b", 1)]
    )
    assert table.markdown() == "| A |\n| ---: |\n| 1.0 |"
    assert table.csv().splitlines()[0] == "a,b"
