"""Citations in docstrings."""

import pytest

from fskd.citation import Citation, citation


def cited(text: str) -> Citation:
    found = citation(f"What it is.\n\n    Formula, 2019.\n\n    {text}\n    ")
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("text", "short", "venue", "place"),
    [
        ("Tung and Mori, *SP*, ICCV 2019, arXiv 1907.09682; as in", "Tung and Mori 2019",
         "ICCV 2019", "arXiv 1907.09682"),
        ("Yim, Joo, Bae and Kim, *A Gift*, CVPR 2017. Lengths", "Yim et al. 2017", "CVPR 2017", ""),
        ("Heo et al., *Overhaul*, ICCV 2019, arXiv\n    1904.01866. As", "Heo et al. 2019",
         "ICCV 2019", "arXiv 1904.01866"),
        ("Deng and Zhang, *Can\n    Students?*, ICLR 2021 submission (OpenReview XZDeL25T12l). The",
         "Deng and Zhang 2021", "ICLR 2021 submission", "OpenReview XZDeL25T12l"),
        ("Huang and Wang, *Like*, 2017, arXiv 1707.01219, with", "Huang and Wang 2017", "2017",
         "arXiv 1707.01219"),
        ("Hinton, Vinyals and Dean, *KD*, NIPS Deep Learning Workshop 2014.", "Hinton et al. 2014",
         "NIPS Deep Learning Workshop 2014", ""),
        ("Cisse and Lopez-Paz, *mixup*, ECCV 2022, doi 10.1007/978-3-031-19830-4_16.",
         "Cisse and Lopez-Paz 2022", "ECCV 2022", "doi 10.1007/978-3-031-19830-4_16"),
        ("van den Oord et al., *CPC*, 2018.", "van den Oord et al. 2018", "2018", ""),
        ("Ba, *Alone*, ICML 2001.", "Ba 2001", "ICML 2001", ""),
    ],
)  # fmt: skip
def test_forms(text: str, short: str, venue: str, place: str) -> None:
    found = cited(text)
    assert (found.short, found.venue, found.place) == (short, venue, place)


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "Boxes after Yun et al., *CutMix*, ICCV 2019, arXiv 1905.04899.",
        "Smoothing is that of Szegedy et al., CVPR 2016, arXiv 1512.00567.",
        "As in Zhang et al., *mixup*, ICLR 2018.",
    ],
)
def test_no_paper_of_its_own(text: str | None) -> None:
    assert citation(text) is None


def test_links() -> None:
    assert cited("Tung and Mori, *SP*, ICCV 2019, arXiv 1907.09682.").markdown == (
        "Tung and Mori, *SP*, ICCV 2019, [arXiv 1907.09682](https://arxiv.org/abs/1907.09682)"
    )
    assert cited("Ba, *Alone*, ICML 2001.").markdown == "Ba, *Alone*, ICML 2001"
