"""Which rows every registered method sees: real, generated, few, none, and in company."""

from typing import Any

import pytest
import torch
from arena import Arena, Rows, leaves, own_terms, parts_of, rows_of, tensors, twin
from cases import NAMES, PAIRS_OF, check, every, losses, once, trained

from fskd.losses.targets import cross_entropy
from fskd.methods.base import Method, methods
from fskd.methods.compose import join
from fskd.methods.plan import Given
from fskd.types import Outputs

# Values that depend on the order or on the company of the rows, and why.
ORDER_DEPENDENT = {
    "kdgan": "labels are drawn by position in the batch",
    "crd": "negatives are drawn by position in the batch",
    "mixmatch": "rows are mixed with each other",
    "remixmatch": "rows are mixed with each other",
    "sskd": "equally ranked rows are cut in row order",
}
# Own terms that look at some of the base rows only, and why.
LEAVES_OUT_GENERATED = dict.fromkeys(
    ("mixmatch", "remixmatch"), "they have labels that are neither true nor guessed"
)
# Without generated rows they have no terms of their own, and why.
NEEDS_GENERATED = {"adamixup": "mixed rows are told from real ones"}


@once
def test_row_order(name: str, pair: str, phase: int) -> None:
    """Real rows may come in any order."""
    if name in ORDER_DEPENDENT:
        pytest.skip(ORDER_DEPENDENT[name])
    arena = Arena(name, pair, phase).begin()
    other = twin(arena)
    batch = arena.rows()
    n, order = batch.n_real, torch.arange(len(batch.inputs))
    order[:n] = order[:n].flip(0)
    turned = batch._replace(
        inputs=batch.inputs[order],
        targets=batch.targets[order[:n]],
        indices=batch.indices[order[:n]],
    )
    expected = arena.terms(batch)
    for term, one in other.terms(turned).items():
        torch.testing.assert_close(one.value, expected[term].value, rtol=1e-3, atol=1e-5)


@every
def test_few_rows(name: str, pair: str, phase: int) -> None:
    """One row gives finite terms, perhaps fewer; the least that a method needs gives its own."""
    arena = Arena(name, pair, phase).begin()
    needs = arena.method.needs
    for n in {1, max(needs.min_rows, 2)}:
        batch = arena.rows(Rows(real=n, unlabelled=2))
        terms = twin(arena).terms(batch)
        check(arena, terms)
        own = set(own_terms(arena, terms))
        if batch.count(arena.method.rows) < needs.min_rows:
            assert not own
        if n > 1:
            full = set(own_terms(arena, twin(arena).terms(arena.rows())))
            assert own == (set() if name in NEEDS_GENERATED else full - {"mixed", "generated"})


@every
def test_without_real_rows(name: str, pair: str, phase: int) -> None:
    """Terms that need labels vanish, the others stay."""
    arena = Arena(name, pair, phase).begin()
    if not arena.stretch.generated:
        pytest.skip("no generated rows in this phase")
    terms = arena.terms(arena.rows(Rows(0, 6)))
    assert terms
    assert "ce" not in terms
    check(arena, terms)
    torch.stack(list(losses(arena, terms).values())).sum().backward()
    for key, parameter in trained(arena).items():
        assert parameter.grad is None or parameter.grad.isfinite().all(), key


@once
def test_generated_rows_are_used_or_ignored(name: str, pair: str, phase: int) -> None:
    """As ``rows`` says: own terms have a gradient in the outputs of those rows, or none."""
    arena = Arena(name, pair, phase).begin()
    batch = arena.rows(Rows(8, 4))
    given = leaves(arena.given(batch), arena.stretch.input_grad)
    own = own_terms(arena, arena.terms(batch, given))
    if not own:
        pytest.skip("no terms of its own in this phase")
    total = sum(term.value for term in own.values())
    assert isinstance(total, torch.Tensor)
    total.backward()
    made, met = batch.part("generated"), 0.0
    for run, one in zip(arena.stretch.runs, given, strict=True):
        for x in tensors(one):
            if x.grad is not None and len(x) == len(batch.inputs) and not run.asks:
                met += float(x.grad[made].abs().sum())
    reads = arena.method.rows == "base" and name not in LEAVES_OUT_GENERATED
    student = any(not run.asks for run in arena.stretch.runs)
    assert (met > 0) is (reads and student)
    if own and reads:
        assert arena.stretch.generated


@once
def test_terms_of_real_rows_do_not_see_generated_ones(name: str, pair: str, phase: int) -> None:
    """Own terms on real rows keep their value when generated rows are appended unread."""
    arena = Arena(name, pair, phase).begin()
    if arena.method.rows == "base":
        pytest.skip("reads generated rows")
    if arena.stretch.input_grad:
        pytest.skip("what the networks gave hangs on the images, which are others without them")
    batch = arena.rows(Rows(8, 4))
    given = arena.given(batch)
    found = own_terms(arena, twin(arena).terms(batch, given))
    rest = torch.cat([torch.arange(8), torch.arange(12, len(batch.inputs))])
    parts = {k: slice(v.start - 4, v.stop - 4) for k, v in batch.parts.items() if k != "generated"}
    plain = batch._replace(inputs=batch.inputs[rest], parts=parts, parents=None, shares=None)
    kept = [one.rows(rest) if isinstance(one, Outputs) else one for one in given]
    for term, one in own_terms(arena, twin(arena).terms(plain, kept)).items():
        torch.testing.assert_close(found[term].value, one.value)


@pytest.mark.parametrize("name", NAMES)
def test_beside_kdplus(name: str) -> None:
    """Own terms are those of the method alone, shared terms those of KD+ alone."""
    if methods.get(name).relabel is not Method.relabel:
        pytest.skip("it stands alone: its rows have labels of their own")
    pair = PAIRS_OF[name][0]
    together, alone = Arena(f"kdplus+{name}", pair), Arena(name, pair)
    plus = Arena("kdplus", pair)
    plus.joint = join(parts_of(f"kdplus+{name}")[:1]).build(plus.shapes)
    plus.stretch = plus.joint.stretches()[-1]
    together.begin()
    state = together.joint.methods[name].state_dict()
    alone.joint.methods[name].load_state_dict(state)
    batch = together.rows(Rows(8, 4))
    given = together.given(batch)
    both = together.terms(batch, given)
    single = alone.terms(batch, picked(together, alone, given))
    for term, one in own_terms(alone, single).items():
        assert torch.equal(both[term].value, one.value), term
        assert both[term][1:] == one[1:]
    shared = plus.terms(batch, picked(together, plus, given))
    labelled = together.stretch.labelled
    for term, one in shared.items():
        if term == "ce" and len(labelled) > 1:
            several = (given[number].logits[: batch.n_real] for number in labelled)
            goal = sum(cross_entropy(logits, batch.targets) for logits in several)
            torch.testing.assert_close(both[term].value, goal)
        else:
            torch.testing.assert_close(both[term].value, one.value)
        assert both[term].weight == one.weight or term == "ce"
    extra = both.keys() - shared.keys() - own_terms(alone, single).keys()
    assert not extra - single.keys()


def picked(source: Arena, of: Arena, given: list[Given]) -> list[Any]:
    """What the runs of one arena are among those of another."""

    def origin(arena: Arena, number: int) -> tuple[Any, ...]:
        run = arena.stretch.runs[number]
        fed = run.source
        behind = None if fed is None else (*origin(arena, fed.run), fed.tap, fed.stage)
        return run.net, run.mode, behind

    known = {origin(source, i): one for i, one in enumerate(given)}
    return [known[origin(of, i)] for i in range(len(of.stretch.runs))]


@pytest.mark.parametrize("name", NAMES)
def test_views_are_of_real_rows_and_drawn_from_their_stream(name: str) -> None:
    """Appended behind all others; equal streams give equal views; nothing else is touched."""
    arena = Arena(name, PAIRS_OF[name][0]).begin()
    method = arena.method
    batch = rows_of(arena, Rows(6, 3), 1)
    first, again = (method.views(batch, torch.Generator().manual_seed(1)) for _ in range(2))
    for key, rows in first.items():
        assert torch.equal(rows, again[key])
        assert rows.shape[1:] == batch.inputs.shape[1:]
        assert key not in batch.parts
    seen = arena.joint.views(batch, torch.Generator().manual_seed(1), arena.stretch)
    assert torch.equal(seen.inputs[: len(batch.inputs)], batch.inputs)
    assert seen.n_base == batch.n_base
