"""What licences ask, alone and together: expressions, obligations, conflicts."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lamina.core.licence_terms import ALIKE, ATTRIBUTE, NON_COMMERCIAL, NOTICE, terms_of
from lamina.core.licences import Stated, combine, read


def layer(name, licence, file=None, author=None):
    return Stated("layer", name, licence, author, file)


@pytest.mark.parametrize(
    ("stated", "name", "obligations"),
    [
        ("apache-2.0", "Apache-2.0", (NOTICE,)),
        ("Apache License 2.0", "Apache-2.0", (NOTICE,)),
        ("cc0-1.0", "CC0-1.0", ()),
        ("cc-by-4.0", "CC-BY-4.0", (ATTRIBUTE,)),
        ("CC-BY-NC-SA-3.0", "CC-BY-NC-SA-3.0", (ATTRIBUTE, NON_COMMERCIAL, ALIKE)),
        ("odc-by", "ODC-By-1.0", (ATTRIBUTE,)),
    ],
)
def test_licences_that_spdx_knows(stated, name, obligations):
    found = terms_of(stated)
    assert (found.name, found.obligations, found.known) == (name, obligations, True)


@pytest.mark.parametrize(
    ("stated", "text"),
    [
        ("gemma", "Gemma Terms of Use"),
        ("LicenseRef-gemma", "Gemma Terms of Use"),
        ("llama3.1", "Built with Llama"),
        ("llama2", "700 million"),
        ("bigscience-openrail-m", "use restrictions"),
        ("openrail++", "use restrictions"),
        ("gpl-3.0", "source"),
    ],
)
def test_named_terms_are_passed_on(stated, text):
    found = combine([layer("a", stated, author="ann")])
    assert not found.problems
    assert any(text in each and "layer a by ann" in each for each in found.obligations)


def test_llama_2_has_no_badge():
    assert not any("Built with" in text for text in terms_of("llama2").obligations)


@pytest.mark.parametrize(
    "stated", ["other", "unknown", "Apache-9.9", "a (b", "AND", "(" * 5000, "(" * 1900]
)
def test_what_is_not_known_is_a_doubt(stated):
    (problem,) = combine([layer("a", stated)]).problems
    assert not problem.forbidden
    assert "not known here" in problem.text


@pytest.mark.parametrize("stated", [None, "", "  "])
def test_what_is_not_stated_is_a_doubt(stated):
    assert combine([layer("a", stated)]).doubts == ("layer a states no licence: ask its author",)


def test_an_or_is_taken_the_easy_way_and_an_and_as_a_whole():
    assert combine([layer("a", "MIT OR CC-BY-NC-4.0")], "sell").forbidden == ()
    assert combine([layer("a", "MIT AND CC-BY-NC-4.0")], "sell").forbidden != ()
    either = "(MIT AND CC-BY-NC-4.0) OR (Apache-2.0 AND CC-BY-4.0)"
    assert combine([layer("a", either)], "sell").expression == "Apache-2.0 AND CC-BY-4.0"
    assert combine([layer("a", "other OR CC-BY-NC-4.0")]).expression == "CC-BY-NC-4.0"


def test_the_whole_names_each_licence_and_whose_it_is():
    works = [Stated("base", "pico", "apache-2.0"), layer("a", "cc-by-4.0", author="ann"),
             layer("b", "apache-2.0"), Stated("data", "of b", "cc-by-4.0")]  # fmt: skip
    found = combine(works)
    assert found.expression == "Apache-2.0 AND CC-BY-4.0"
    assert found.obligations == (
        f"{NOTICE} [base pico, layer b]",
        f"{ATTRIBUTE} [layer a by ann, data of b]",
    )


@pytest.mark.parametrize("stated", ["cc-by-nc-4.0", "qwen-research", "cc-by-nc-sa-4.0"])
def test_commerce_is_forbidden_where_a_licence_bans_it(stated):
    works = [layer("a", "mit"), layer("b", stated)]
    assert combine(works, "share").forbidden == ()
    (text,) = combine(works, "sell").forbidden
    assert "layer b" in text


@pytest.mark.parametrize(
    ("version", "make", "share"), [("4.0", False, True), ("3.0", True, True), ("2.0", True, True)]
)
def test_no_derivatives_as_each_version_says_it(version, make, share):
    works = [layer("a", f"cc-by-nd-{version}", "one file"), layer("b", "mit", "one file")]
    assert bool(combine(works, "combine").forbidden) is make
    assert bool(combine(works, "share").forbidden) is share
    alone = [layer("a", f"cc-by-nd-{version}")]
    assert combine(alone, "share").forbidden == ()
    assert combine(alone, "share").doubts != ()


@pytest.mark.parametrize(
    ("one", "two", "meet"),
    [
        ("cc-by-sa-4.0", "gpl-3.0", True),
        ("cc-by-sa-3.0", "cc-by-sa-4.0", True),
        ("cc-by-sa-4.0", "gpl-2.0", False),
        ("gpl-2.0", "gpl-3.0", False),
        ("gpl-2.0-or-later", "gpl-3.0", True),
        ("mpl-2.0", "agpl-3.0", True),
        ("cc-by-sa-4.0", "cc-by-nc-sa-4.0", False),
        ("cc-by-sa-4.0", "cc-by-nc-4.0", False),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", True),
        ("cc-by-sa-4.0", "apache-2.0", True),
        ("odbl", "cc-by-sa-4.0", False),
    ],
)
def test_share_alike_in_one_file(one, two, meet):
    works = [layer("a", one, "merge"), layer("b", two, "merge")]
    for order in (works, works[::-1]):
        assert bool(combine(order, "share").forbidden) is not meet
        assert combine(order, "combine").forbidden == ()
        assert bool(combine(order, "combine").doubts) is not meet
    apart = [layer("a", one), layer("b", two)]
    assert combine(apart, "share").problems == ()


_NAMES = st.sampled_from(["MIT", "gemma", "cc-by-sa-4.0", "other", "GPL-2.0-only", "x y", ""])
_EXPRESSIONS = st.recursive(
    _NAMES,
    lambda inner: (
        st.tuples(inner, st.sampled_from([" AND ", " OR ", " WITH ", " and "]), inner)
        .map("".join)
        .map(lambda text: f"({text})")
    ),
    max_leaves=40,
)


@given(st.one_of(st.text(max_size=60), _EXPRESSIONS))
def test_nothing_that_is_stated_breaks_the_reader(text):
    ways = read(text)
    assert bool(ways) is bool(text.strip())
    assert len(ways) <= 64
    assert all(terms.name for way in ways for terms in way)
    assert combine([layer("a", text), layer("b", "mit")]).expression.count("MIT") >= 1


def test_many_choices_end_soon():
    assert len(read(" AND ".join(["(MIT OR gemma)"] * 60))) == 64
