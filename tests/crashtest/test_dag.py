"""Down-closed sets against their definition, on drawn orders."""

from hypothesis import given
from hypothesis import strategies as st

from headway.crashtest import dag


@st.composite
def orders(draw: st.DrawFn, most: int = 9) -> list[int]:
    size = draw(st.integers(0, most))
    return [draw(st.integers(0, (1 << i) - 1)) if i else 0 for i in range(size)]


def _by_definition(preds: list[int]) -> set[int]:
    return {mask for mask in range(1 << len(preds)) if all(preds[i] & ~mask == 0 for i in range(len(preds)) if mask >> i & 1)}


@given(orders())
def test_every_down_closed_set_is_listed_once(preds: list[int]) -> None:
    listed = list(dag.ideals(preds))
    assert len(listed) == len(set(listed))
    assert set(listed) == _by_definition(preds)


@given(orders(), st.integers(0, 511))
def test_nodes_outside_the_scope_count_as_present(preds: list[int], scope: int) -> None:
    scope &= (1 << len(preds)) - 1
    outside = (1 << len(preds)) - 1 & ~scope
    listed = set(dag.ideals(preds, scope))
    expected = {
        mask
        for mask in range(1 << len(preds))
        if mask & ~scope == 0 and all(preds[i] & ~(mask | outside) == 0 for i in range(len(preds)) if mask >> i & 1)
    }
    assert listed == expected


@given(orders(), st.integers(0, 511))
def test_contracting_keeps_the_order_of_what_remains(preds: list[int], removed: int) -> None:
    removed &= (1 << len(preds)) - 1
    before, after = dag.ancestors(preds), dag.ancestors(dag.contract(preds, removed))
    for i in range(len(preds)):
        assert after[i] == (0 if removed >> i & 1 else before[i] & ~removed)


@given(orders())
def test_a_reduction_implies_the_same_order(preds: list[int]) -> None:
    least = dag.reduced(preds)
    assert dag.ancestors(least) == dag.ancestors(preds)
    assert all(few & ~all_ == 0 for few, all_ in zip(least, preds))


@given(orders())
def test_descendants_mirror_ancestors(preds: list[int]) -> None:
    up, down = dag.ancestors(preds), dag.descendants(preds)
    for i in range(len(preds)):
        for j in range(len(preds)):
            assert (up[i] >> j & 1) == (down[j] >> i & 1)


def test_counting_stops_above_its_limit() -> None:
    assert dag.count_ideals([0] * 40, limit=10) == 11
    assert dag.count_ideals([0, 1], limit=10) == 3
