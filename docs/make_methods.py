"""Writes the tables of docs/methods.md, between its marks; the text around them is written by hand.

python docs/make_methods.py
"""

import re
from itertools import groupby
from pathlib import Path

from fskd.citation import citation
from fskd.generators.base import generators
from fskd.methods.base import methods
from fskd.methods.words import FAMILIES
from fskd.runs.overview import Entry, overview, short

PAGE = Path(__file__).with_name("methods.md")
HEAD = "| method | paper | needs | rows | networks | queries |\n|---|---|---|--:|---|---|\n"

# What the KD+ paper cites, as it calls it, and the parts of fskd that it is, methods or generators.
CITED = {
    "KD": ("kd",),
    "FitNet": ("fitnet",),
    "AT": ("at",),
    "FSP": ("fsp",),
    "FT": ("ft",),
    "AB": ("ab",),
    "NST": ("nst",),
    "VID": ("vid",),
    "SP": ("sp",),
    "CC": ("cc",),
    "PKT": ("pkt",),
    "RKD": ("rkd",),
    "CRD": ("crd",),
    "OFD": ("ofd",),
    "SSKD": ("sskd",),
    "Jacobian matching": ("jacobian",),
    "LIT": ("lit",),
    "Progressive blockwise KD": ("blockwise",),
    "Internal representations": ("aguilar",),
    "Knowledge Flow": ("knowledge_flow",),
    "IRG": ("irg",),
    "KDSVD": ("kdsvd",),
    "DML": ("dml",),
    "Codistillation": ("codistillation",),
    "ONE": ("one",),
    "BAN": ("ban",),
    "TAKD": ("takd",),
    "Tf-KD": ("tfkd_self", "tfkd_reg"),
    "ESKD": ("eskd",),
    "mixup": ("mixup",),
    "AdaMixUp": ("adamixup",),
    "CutMix": ("cutmix",),
    "MixMatch": ("mixmatch",),
    "ReMixMatch": ("remixmatch",),
}


def page(text: str, entries: list[Entry]) -> str:
    """The page with its tables as they should be."""
    return _put("cited", cited_table(), _put("methods", method_tables(entries), text))


def method_tables(entries: list[Entry]) -> str:
    """A table for each family."""
    found = []
    for family, some in groupby(entries, key=lambda one: one.family):
        rows = "".join(_row(one) for one in some)
        found.append(
            f"### {family.capitalize()}\n\n{FAMILIES[family].capitalize()}.\n\n{HEAD}{rows}"
        )
    return "\n".join(found)


def cited_table() -> str:
    """What the KD+ paper cites."""
    rows = (f"| {name} | {_ours(parts)} | {_paper(parts[0])} |\n" for name, parts in CITED.items())
    return "| in the paper | in fskd | citation |\n|---|---|---|\n" + "".join(rows)


def _row(one: Entry) -> str:
    paper = "-" if one.paper is None else one.paper.markdown
    cells = (f"`{one.name}`", paper, ", ".join(one.needs), short(one.rows), one.networks, one.asked)
    return f"| {' | '.join(cells)} |\n"


def _ours(parts: tuple[str, ...]) -> str:
    known = methods.names()
    return ", ".join(f"`{one}`" if one in known else f"generator `{one}`" for one in parts)


def _paper(name: str) -> str:
    registry = methods if name in methods.names() else generators
    found = citation(registry.get(name).__doc__)
    if found is None:
        raise ValueError(f"the docstring of '{name}' cites no paper")
    return found.markdown


def _put(mark: str, table: str, text: str) -> str:
    begin, end = f"<!-- {mark} -->\n", f"<!-- end of {mark} -->\n"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    made, n = pattern.subn(lambda _: f"{begin}\n{table}\n{end}", text)
    if n != 1:
        raise ValueError(f"{PAGE.name} has the marks of '{mark}' {n} times")
    return made


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), overview()), encoding="utf-8")
