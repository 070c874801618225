"""Caches bounded by bytes."""

from __future__ import annotations

from collections import OrderedDict

from hypothesis import given
from hypothesis import strategies as st

from service.caches import ByteCache

steps = st.lists(
    st.tuples(st.sampled_from(["get", "put"]), st.integers(0, 6), st.integers(0, 60)), max_size=60
)


@given(st.integers(0, 100), steps)
def test_it_is_a_dictionary_of_what_was_used_last(capacity: int, actions: list[tuple[str, int, int]]) -> None:
    """Against a plain model: an ordered dictionary that is trimmed from the front."""
    cache: ByteCache[int] = ByteCache(capacity)
    model: OrderedDict[int, int] = OrderedDict()
    for action, key, size in actions:
        if action == "get":
            assert cache.get(key) == model.get(key)
            if key in model:
                model.move_to_end(key)
        else:
            cache.put(key, size, size)
            model.pop(key, None)
            if size <= capacity:
                model[key] = size
            while sum(model.values()) > capacity:
                model.popitem(last=False)
        assert cache.size == sum(model.values()) <= capacity
        assert len(cache) == len(model)
        assert all(known in cache for known in model)


def test_no_capacity_keeps_nothing() -> None:
    cache: ByteCache[bytes] = ByteCache(0)
    cache.put("a", b"x", 1)
    assert cache.get("a") is None
    assert "a" not in cache
