import pytest

from lamina.core.digest import digest_bytes
from lamina.core.errors import UsageError
from lamina.share.policy import FILE, Policy, Rule, Subject, judge, read_policy
from lamina.share.signature import Finding

ONE = digest_bytes(b"one")
ANNA, BOB = digest_bytes(b"anna"), digest_bytes(b"bob")


def by(name, key, state="trusted"):
    return Finding(state=state, key=key, name=name, why="" if state == "trusted" else "because")


def subject(**fields):
    return Subject(digest=ONE, **fields)


def test_without_a_policy_what_is_unsigned_is_told():
    found = judge(subject(), (), Policy())
    assert found.allowed
    assert "not signed by anybody you trust" in found.warnings[0]


def test_a_trusted_signature_is_enough():
    found = judge(subject(), (by("anna", ANNA),), Policy(unsigned="refuse"))
    assert (found.allowed, found.signed_by, found.warnings) == (True, ("anna",), ())


@pytest.mark.parametrize("state", ["unknown", "revoked", "wrong"])
def test_other_signatures_are_told_and_count_for_nothing(state):
    bad = by("anna", ANNA, state)
    assert not judge(subject(), (bad,), Policy(unsigned="refuse")).allowed
    found = judge(subject(), (bad, by("bob", BOB)), Policy(unsigned="refuse"))
    assert found.allowed  # or anybody could keep a signed thing out by adding junk to it
    assert "does not count: because" in found.warnings[0]


def test_only_the_signers_of_the_rule_count():
    policy = Policy(rules=(Rule(name="support*", signers=("anna",)),))
    refused = judge(subject(names=("support",)), (by("bob", BOB),), policy)
    assert (refused.allowed, refused.rule) == (False, 1)
    assert any("bob, who is not among" in text for text in refused.reasons)
    assert judge(subject(names=("support",)), (by("anna", ANNA),), policy).allowed
    assert judge(subject(names=("other",)), (by("bob", BOB),), policy).rule is None


def test_a_key_s_id_names_one_key_of_several():
    policy = Policy(rules=(Rule(signers=(ANNA,)),))
    assert judge(subject(), (by("anna", ANNA),), policy).allowed
    assert not judge(subject(), (by("anna", BOB),), policy).allowed


def test_the_first_rule_that_fits_decides():
    policy = Policy(
        unsigned="refuse",
        rules=(
            Rule(source="oci://localhost*", unsigned="allow"),
            Rule(author="Anna*", signers=("anna",), unsigned="warn"),
        ),
    )
    here = judge(subject(source="oci://localhost:5000/a", authors=("Anna",)), (), policy)
    assert (here.allowed, here.rule, here.warnings) == (True, 1, ())
    hers = judge(subject(source="oci://x/a", authors=("Bob", "Anna B.")), (), policy)
    assert (hers.allowed, hers.rule) == (True, 2)
    assert "not signed by anna" in hers.warnings[0]
    assert not judge(subject(source="oci://x/a"), (), policy).allowed


def test_all_patterns_of_a_rule_have_to_fit():
    policy = Policy(unsigned="allow", rules=(Rule(name="a*", source="oci://b/*"),))
    assert judge(subject(names=("a1",), source="hf:b/c"), (), policy).allowed
    assert not judge(subject(names=("a1",), source="oci://b/c"), (), policy).allowed


def test_a_policy_is_read_from_toml(tmp_path):
    assert read_policy(tmp_path) == Policy()
    (tmp_path / FILE).write_text(
        'unsigned = "refuse"\ncheck = ["pull", "serve"]\n'
        '[[rules]]\nname = "support*"\nsigners = ["anna"]\nunsigned = "warn"\n'
    )
    found = read_policy(tmp_path)
    assert found.check == ("pull", "serve")
    assert found.rules == (Rule(name="support*", signers=("anna",), unsigned="warn"),)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("unsigned = 'maybe'", "unsigned"),
        ("unsinged = 'refuse'", "did you mean 'unsigned'"),
        ("[[rules]]\nsigner = ['anna']", "rules.0.signer: unknown key"),
        ("[[rules]]\nsigners = []", "signers"),
        ("check = ['sometimes']", "check"),
        ("unsigned = ", "not TOML"),
        ("a = " + "[" * 100_000, "not TOML"),
        ("\x00", "not TOML"),
    ],
)
def test_an_unclear_policy_lets_nothing_pass(tmp_path, text, fault):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(UsageError) as caught:
        read_policy(tmp_path)
    assert fault in caught.value.render()
