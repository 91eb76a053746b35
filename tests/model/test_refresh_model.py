from __future__ import annotations

from dataclasses import replace

import pytest

from tests.model.refresh import MUTATIONS, VARIANTS, Variant, explore, wrong


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS[:-1], ids=lambda variant: variant.name)
def test_every_property_holds_in_the_model_with_small_bounds(variant: Variant) -> None:
    small = replace(variant, refreshes=1, interventions=1, kills=1, losses=0, commit_failures=0)

    result = explore(small)

    assert result.violated is None, explore(small, traced=True).trace
    assert result.states > 1_000


@pytest.mark.parametrize(("mutation", "expected"), MUTATIONS.items())
def test_a_fault_in_the_protocol_violates_its_property(mutation: str, expected: int) -> None:
    assert explore(wrong(mutation)).violated == expected
