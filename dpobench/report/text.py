"""Text from models and data sets, made harmless for each place it may appear in."""

import unicodedata

# How the note on variants that read more of the data begins; the command line shows it, too.
UNEVEN = "Given more of the data than the others"
_BIDI = frozenset("\u061c\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
} | {sign: "\\" + sign for sign in "&%$#_{}"}
_PLAIN = str.maketrans({"−": "-", "β": "beta", "σ": "sigma", "×": "x", "–": "-", "Δ": "Delta", "≥": ">=", "≤": "<="})


def visible(text: object) -> str:
    """The text with control, bidirectional and unpaired surrogate characters written out, as in ⟨U+202E⟩; tab and newline stay."""
    return "".join(
        f"⟨U+{ord(sign):04X}⟩"
        if sign in _BIDI or (unicodedata.category(sign) in ("Cc", "Cs") and sign not in "\n\t")
        else sign
        for sign in str(text)
    )


def line(text: object) -> str:
    """The visible text on one line."""
    return " ".join(visible(text).split())


def csv_cell(value: object) -> object:
    """A text that a spreadsheet would take for a formula gets an apostrophe before it; numbers stay numbers."""
    if not isinstance(value, str):
        return value
    shown = line(value) if "\n" in value else visible(value)
    return "'" + shown if shown.startswith(("=", "+", "-", "@", "\t", "\r")) else shown


def markdown(text: object) -> str:
    """One line of Markdown that shows the text and means nothing else."""
    escaped = line(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join("\\" + sign if sign in "\\`*_{}[]|~#!" else sign for sign in escaped)


def fenced(text: object) -> str:
    """A Markdown code block that the text cannot close."""
    shown = visible(text)
    longest = max((len(run) for run in "".join(c if c == "`" else " " for c in shown).split()), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{shown}\n{fence}"


def latex(text: object) -> str:
    """One line of LaTeX that prints the text."""
    return "".join(_LATEX.get(sign, sign) for sign in line(text).translate(_PLAIN))
