"""The report: a pure function of an experiment's folder, in HTML, Markdown, CSV, LaTeX, SVG and PNG."""

from pathlib import Path

from dpobench.artifacts.files import building, write_bytes


def write_report(folder: Path) -> Path:
    """Write the report of an experiment; what was there before is replaced at once, or not at all.

    Args:
        folder: what `dpobench run --out` was given.

    Returns: the path of `report/report.html`.

    Raises:
        UserError: the folder holds no experiment.
        Damaged: one of its files cannot be read.
    """
    # Drawing and statistics are imported when a report is written: `dpobench --help` needs neither.
    from dpobench.analysis.findings import read
    from dpobench.analysis.results import load
    from dpobench.report import figures, layout, page, words
    from dpobench.report.sections import leaderboard, overview, sections, training_dynamics

    findings = read(load(folder))
    made = [leaderboard.leaderboard(findings), leaderboard.grid(findings), leaderboard.benchmarks(findings)]
    made += [leaderboard.compute(findings), leaderboard.trials(findings), *training_dynamics.diagnostics(findings)]
    with figures.drawing():
        shown = layout.in_order(sections(findings))
        drawn = overview.draw(findings)
    made += [table for section in shown for table in section.tables]
    tables = {table.name: table for table in made}
    for section in shown:
        drawn |= section.figures
    alarms = [*words.alarms(findings), *(alarm for section in shown for alarm in section.alarms)]
    notes = [*alarms, *words.notes(findings), *(note for section in shown for note in section.notes)]
    with building(folder / "report") as place:
        for table in made:
            if not len(table.frame.columns):  # nothing was measured: an empty file would only puzzle its reader
                continue
            write_bytes(place / "tables" / f"{table.name}.csv", table.csv().encode())
            write_bytes(place / "tables" / f"{table.name}.tex", table.latex().encode())
        inline = {}
        for name, (caption, figure) in drawn.items():
            markup = figures.svg(figure)
            write_bytes(place / "figures" / f"{name}.svg", markup.encode())
            write_bytes(place / "figures" / f"{name}.png", figures.png(figure))
            inline[name] = (caption, figures.inline(markup, name))
        write_bytes(place / "verdict.txt", "\n".join([words.verdict(findings), *notes, ""]).encode())
        context = page.context(findings, tables, inline, shown) | {"notes": notes, "alarms": alarms}
        write_bytes(place / "report.html", page.render("report.html.j2", context).encode())
        write_bytes(place / "report.md", page.render("report.md.j2", context).encode())
    return folder / "report" / "report.html"
