"""How fast this machine is, as a plan knows it: by layers trained here, and by a probe."""

import pytest

from lamina.core.errors import UsageError
from lamina.core.evidence import COST_TYPE, CostEvidence
from lamina.core.recipe import Recipe
from lamina.flows import probe
from lamina.flows.plan import _subject, past_rates
from lamina.stack.resolve import resolve
from tests.flows.world import Said


def test_past_runs_are_of_whatever_trained_last(store):
    """A GPU and a processor of one machine do not make one interval."""
    model, stack = _subject(store, "second")
    here = past_rates(store, model, stack)
    assert len(here) == 2  # `first` and `second`
    layer = store.describe(stack.layers[-1].digest)
    (cost,) = store.evidence(layer.digest, COST_TYPE, CostEvidence)

    def trained(created, name):
        system = cost.hardware.split(", ")[0]
        changes = {"created": created, "hardware": f"{system}, {name}", "seconds": 1e-3}
        store.put_evidence(COST_TYPE, cost.model_copy(update=changes), layer)

    trained("2001-01-01T00:00:00+00:00", "an older GPU")
    assert sorted(past_rates(store, model, stack)) == sorted(here)
    trained("2999-01-01T00:00:00+00:00", "a newer GPU")
    (rate,) = past_rates(store, model, stack)
    assert rate > max(here)


def test_a_probe_is_refused_where_a_gpu_trains(store, monkeypatch):
    monkeypatch.setattr(probe, "device_at_hand", lambda: "cuda")
    with pytest.raises(UsageError, match="a GPU trains here"):
        probe.probe(store, resolve(store, "first"), Recipe(), Said())
