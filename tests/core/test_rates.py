"""Money from hours and energy."""

import pytest

from lamina.core.rates import Rates


def rates(**given):
    return Rates(hardware="this", currency="EUR", **given)


def test_money_is_hours_and_energy():
    both = rates(per_hour=0.36, per_kwh=0.25)
    assert both.money(3600, 3.6e6) == pytest.approx(0.61)
    assert both.money(1800, 0.0) == pytest.approx(0.18)
    assert rates(per_hour=0.36).money(3600, 3.6e6) == pytest.approx(0.36)
    assert rates(per_kwh=0.25).money(3600, 7.2e6) == pytest.approx(0.50)


def test_what_was_not_measured_is_the_estimates_and_what_is_not_known_is_none():
    assert rates(per_kwh=0.25, watts=100).money(3600, None) == pytest.approx(0.025)
    assert rates(per_kwh=0.25, watts=100).money(3600, 3.6e6) == pytest.approx(0.25)
    assert rates(watts=100).estimated_joules(10) == 1000
    assert rates().estimated_joules(10) is None
    assert rates(per_kwh=0.25).money(3600, None) is None
    assert rates(watts=100).money(3600, None) is None
    assert rates().money(3600, 5.0) is None
    assert rates(per_hour=0.0).money(3600, None) == 0.0
