"""The paper that a part is from, as its docstring cites it."""

import re
from typing import NamedTuple

_NAME = r"(?:(?:van|von|de|der|den) )*[A-Z][\w'-]+"
_PAPER = re.compile(
    rf"(?P<authors>{_NAME}(?:(?:, | and ){_NAME})*(?: et al\.)?), \*(?P<title>[^*]+)\*, "
    r"(?P<venue>(?:[A-Z][\w ]* )?(?P<year>\d{4})(?: submission)?)"
    r"(?:(?:, | \()(?P<archive>arXiv|OpenReview|doi) (?P<number>[\w./-]*\w))?"
)
_ADDRESSES = {
    "arXiv": "https://arxiv.org/abs/",
    "OpenReview": "https://openreview.net/forum?id=",
    "doi": "https://doi.org/",
}


class Citation(NamedTuple):
    """A paper.

    Attributes:
        authors: Their surnames, or the first one's and ``et al.``.
        title: Its title.
        venue: Where it was published, and the year.
        year: The year.
        archive: ``arXiv``, ``OpenReview`` or ``doi``; None if it is in none of them.
        number: Its number there.
    """

    authors: str
    title: str
    venue: str
    year: str
    archive: str | None = None
    number: str | None = None

    @property
    def short(self) -> str:
        """One or two authors or the first of several, and the year."""
        names = re.split(", | and ", self.authors.removesuffix(" et al."))
        several = len(names) > 2 or self.authors.endswith(" et al.")
        who = f"{names[0]} et al." if several else self.authors
        return f"{who} {self.year}"

    @property
    def place(self) -> str:
        """The archive and the number there; empty if it is in none."""
        return f"{self.archive} {self.number}" if self.archive else ""

    @property
    def markdown(self) -> str:
        """All of it, with a link."""
        text = f"{self.authors}, *{self.title}*, {self.venue}"
        if self.archive is None:
            return text
        return f"{text}, [{self.place}]({_ADDRESSES[self.archive]}{self.number})"


def citation(docstring: str | None) -> Citation | None:
    r"""The paper that a paragraph of a docstring begins with; None if none does.

    Example:
        >>> found = citation("Soft.\n\nTung and Mori, *SP*, ICCV 2019, arXiv 1907.09682; so")
        >>> found.short, found.place
        ('Tung and Mori 2019', 'arXiv 1907.09682')
    """
    for paragraph in re.split(r"\n\s*\n", docstring or ""):
        if found := _PAPER.match(" ".join(paragraph.split())):
            return Citation(**found.groupdict())
    return None
