"""The report: a pure function of an experiment's folder, in HTML, Markdown, CSV, LaTeX, SVG and PNG."""

__all__ = ["figures", "text", "write"]
