"""The page pool and the prefix tree keep their books whatever is taken, shared, published and given back."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.core.errors import CapacityError
from headway.engine.pool import PagePool, PoolCorrupt
from headway.engine.prefix import PrefixCache, page_key, root_key

ROOT = root_key("m", "fast", "bf16", "")


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 40),
    st.sampled_from([16, 32, 64]),
    st.lists(st.tuples(st.sampled_from("aergp"), st.integers(0, 9), st.integers(0, 9)), max_size=60),
)
def test_every_page_is_free_owned_or_cached_and_refcounts_equal_table_entries(pages, page_tokens, moves):
    evicted = []
    pool = PagePool(pages, page_tokens, evicted.append)
    tables: list[list[int]] = []
    for move, a, b in moves:
        if move == "a":
            available = pool.available_pages
            if b <= available:
                tables.append(pool.allocate(b))
                assert len(set(tables[-1])) == b and pool.available_pages == available - b
            else:
                with pytest.raises(CapacityError):
                    pool.allocate(b)
        elif tables:
            table = tables[a % len(tables)]
            if move == "e" and pool.available_pages:
                table += pool.allocate(1, table[-1] if table else -1)
            elif move == "r":
                pool.release(table)
                tables.remove(table)
            elif move == "g":
                for page in table[:b]:
                    pool.retain(page)
                tables.append(table[:b])
            elif move == "p":
                for page in table[:b]:
                    pool.publish(page)
        pool.check(tables)
    for table in tables:
        pool.release(table)
    pool.check([])
    assert pool.used_pages == 0


def test_a_sequence_grows_in_runs_beside_another():
    pool = PagePool(64, 16, lambda page: None)
    a, b = pool.allocate(1), pool.allocate(1)
    for _ in range(7):
        a += pool.allocate(1, a[-1])
        b += pool.allocate(1, b[-1])
    for table in (a, b):
        runs = 1 + sum(y != x + 1 for x, y in itertools.pairwise(table))
        assert runs <= 2, table
    assert pool.allocate(20) == list(range(16, 36))


def test_eviction_takes_the_oldest_and_children_before_parents():
    evicted = []
    pool = PagePool(4, 16, evicted.append)
    first = pool.allocate(3)
    for page in first:
        pool.publish(page)
    pool.release(first)
    assert pool.cached_pages == 3 and pool.available_pages == 4
    pool.allocate(3)
    assert evicted == [first[2], first[1]]


def test_releasing_twice_is_an_error_and_not_a_second_free_page():
    pool = PagePool(4, 16, lambda page: None)
    pages = pool.allocate(2)
    pool.release(pages)
    with pytest.raises(PoolCorrupt):
        pool.release(pages)


def test_a_page_is_found_only_by_its_own_tokens_parent_and_classes():
    cache = PrefixCache()
    entry = cache.insert(3, ROOT, b"tokens", b"\0\1")
    assert cache.find(ROOT, b"tokens", None) is entry and cache.find(ROOT, b"tokens", b"\0\1") is entry
    assert cache.find(ROOT, b"tokens", b"\0\0") is None
    assert cache.find(ROOT, b"tokenz", None) is None and cache.find(entry.key, b"tokens", None) is None
    assert cache.insert(4, ROOT, b"tokens", b"\0\1") is entry
    variant = cache.insert(4, ROOT, b"tokens", b"\0\0")
    assert variant is not entry and cache.find(ROOT, b"tokens", b"\0\0") is variant
    cache.forget(3)
    cache.check()
    assert cache.find(ROOT, b"tokens", None) is variant and len(cache) == 1


def test_keys_separate_models_modes_and_salts():
    roots = {
        root_key(*parts)
        for parts in (("m", "fast", "bf16", ""), ("mf", "ast", "bf16", ""), ("m", "exact", "bf16", ""), ("m", "fast", "bf16", "a"))
    }
    assert len(roots) == 4 and page_key(ROOT, b"a", b"") != page_key(ROOT, b"b", b"")
