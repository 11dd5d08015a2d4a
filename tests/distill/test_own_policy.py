"""A user's own policy is found by its import path."""

from __future__ import annotations

import pytest

from src.core.errors import ConfigError
from src.distill.selection_policy import KLDivergence, build_policy
from src.distill.settings import ActiveSettings


def factory(settings: ActiveSettings) -> KLDivergence:
    """Stands for a user's own."""
    return KLDivergence(threshold=settings.kl_threshold * 2)


def test_a_policy_of_ones_own_is_built_from_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    import types

    module = types.ModuleType("my_policies")
    module.factory = factory  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_policies", module)
    assert build_policy(ActiveSettings(policy="my_policies:factory", kl_threshold=0.25)) == KLDivergence(0.5)


@pytest.mark.parametrize("name", ["nowhere_at_all:policy", "src.core.seed:policy"])
def test_one_that_cannot_be_found_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be found"):
        build_policy(ActiveSettings(policy=name))
