"""What hypothesis draws in more than one place."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4)

JSON: st.SearchStrategy[Any] = st.deferred(
    lambda: SCALARS | st.lists(JSON, max_size=3) | st.dictionaries(st.text(max_size=4), JSON, max_size=3)
)
"""Any JSON value, small; and numbers that only Python has. Deferred: hypothesis 6.170 takes two `st.recursive` of the
same shape for one that does not use its argument."""
