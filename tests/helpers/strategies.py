"""What the tests with made-up data share: how many examples, and what they are made of."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st


def examples(count: int, **more: Any) -> settings:
    """Return settings for *count* examples, times what the profile has more than its usual 100."""
    return settings(max_examples=count * settings().max_examples // 100, **more)


# Half surrogate pairs, control characters, ends of lines, and what can be written in two ways.
_odd = st.sampled_from(
    "\0\n\r\t\x1b\x7f\x85\u2028\u2029\ud800\udcff\udfff\ufeff\u202ee\u0301é\u212b"
)
any_text = st.text(st.characters() | _odd)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | any_text,
    lambda values: st.lists(values, max_size=3) | st.dictionaries(any_text, values, max_size=3),
    max_leaves=8,
)
storable_text = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=30)
secrets = storable_text.filter(bool)
