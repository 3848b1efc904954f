"""Signatures through a real registry: they arrive, count, and decide before anything lands."""

import pytest

from lamina.core.errors import TrustError
from lamina.core.report import Silent
from lamina.flows.publish import Landing, pull, push
from lamina.flows.trust import Trust, sign_object, signatures
from lamina.share.policy import FILE
from tests.share.stacks import tall
from tests.store.make import put_base


def nobody(name):
    raise AssertionError(name)


def test_a_signature_comes_from_a_registry_and_counts(home, away, place, access, tmp_path):
    stack = tall(home, ["one", "two"])
    put_base(away)
    anna, careful = Trust(tmp_path / "anna"), Trust(tmp_path / "careful")
    careful.keys.trust(anna.keys.new("anna").line)
    (careful.folder / FILE).write_text(
        'unsigned = "allow"\n[[rules]]\nsource = "oci://127.0.0.1:*"\nsigners = ["anna"]\n'
    )
    landing = Landing(name="mine", trust=careful)
    push(home, "tall", place, access, Silent())
    with pytest.raises(TrustError, match="refused by rule 1"):
        pull(away, place, access, Silent(), landing)
    assert away.names() == {}
    sign_object(home, anna, "tall", nobody)
    push(home, "tall", place, access, Silent())  # the signature alone
    shown = pull(away, place, access, Silent(), Landing(dry_run=True, trust=careful))
    assert "signed by anna" in shown["text"]
    assert pull(away, place, access, Silent(), landing)["stack"] == stack.digest
    assert [f.state for f in signatures(away, careful, stack.digest)] == ["trusted"]
