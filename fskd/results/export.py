"""Tables as files: Markdown and LaTeX for papers, CSV with full precision for everything else."""

import re
from collections.abc import Sequence

import pandas as pd

from fskd.results.grids import Cell, Grid

_TEX = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#",
    "_": r"\_", "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "<": r"$<$", ">": r"$>$", "±": r"$\pm$", "→": r"$\rightarrow$", "[": "{[}", "]": "{]}",
}  # fmt: skip


def tex(text: str) -> str:
    r"""Text that LaTeX prints as it is; line breaks and other control characters become spaces.

    Example:
        >>> print(tex("50 % of a_b"))
        50 \% of a\_b
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    escaped = "".join(_TEX.get(letter, letter) for letter in plain)
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", escaped)


def markdown(text: str) -> str:
    r"""Text that Markdown shows as it is, on one line.

    Example:
        >>> print(markdown("a|b *c*"))
        a\|b \*c\*
    """
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_<>\[\]|&])", r"\\\1", plain)


def to_markdown(grids: Sequence[Grid]) -> str:
    """Pipe tables, each with its title above and its notes below."""
    return "\n".join(_markdown_table(grid) for grid in grids)


def _markdown_table(grid: Grid) -> str:
    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cells)} |"

    def cell(c: Cell) -> str:
        text = f"**{markdown(c.text)}**" if c.bold else markdown(c.text)
        small = f" ({markdown(c.small)})" if c.small else ""
        return text + (f"<sup>{c.marks}</sup>" if c.marks else "") + small

    align = ["---", *["---:"] * (len(grid.head) - 1)]
    lines = [f"**{markdown(grid.title)}**", "", line([markdown(h) for h in grid.head]), line(align)]
    lines += [line([cell(c) for c in row]) for row in grid.rows]
    return "\n".join([*lines, "", " ".join(map(markdown, grid.notes)), ""])


def to_latex(grids: Sequence[Grid]) -> str:
    r"""``table`` environments; needs ``\usepackage{booktabs}``."""
    head = "% needs \\usepackage{booktabs} and a Unicode engine or \\usepackage[utf8]{inputenc}\n"
    return head + "\n".join(_latex_table(grid) for grid in grids)


def _latex_table(grid: Grid) -> str:
    def cell(c: Cell) -> str:
        text = rf"\textbf{{{tex(c.text)}}}" if c.bold else tex(c.text)
        marks = rf"\textsuperscript{{{c.marks}}}" if c.marks else ""
        return text + marks + (rf" {{\scriptsize ({tex(c.small)})}}" if c.small else "")

    lines = [
        r"\begin{table}", r"\centering", rf"\caption{{{tex(grid.title)}}}",
        rf"\label{{tab:{grid.name}}}", rf"\begin{{tabular}}{{l{'r' * (len(grid.head) - 1)}}}",
        r"\toprule", " & ".join(map(tex, grid.head)) + r" \\", r"\midrule",
        *(" & ".join(map(cell, row)) + r" \\" for row in grid.rows),
        r"\bottomrule", r"\end{tabular}", r"\par\smallskip",
        rf"{{\footnotesize {tex(' '.join(grid.notes))}\par}}", r"\end{table}",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def to_csv(table: pd.DataFrame) -> str:
    """All columns, as numbers with full precision."""
    return str(table.to_csv(index=False, lineterminator="\n"))
