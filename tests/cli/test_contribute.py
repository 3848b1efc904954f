"""A layer goes from its author to whoever keeps the stack: propose, review, accept."""

import json
import shutil
import subprocess
import tarfile

import pytest

from lamina.core.evidence import REVIEW_TYPE, SCORES_TYPE, ScoresEvidence
from lamina.core.names import Name
from lamina.core.proposals import ReviewEvidence
from lamina.flows.examine import ENGINE
from lamina.stack.resolve import resolve
from lamina.store.layout import Store
from tests.cli import forge
from tests.cli.program import Program, config_of
from tests.made import QUICK, write_rows
from tests.share import registries

pytestmark = pytest.mark.slow

WHY = ("--accept-regression", "it is a test")


@pytest.fixture(scope="session")
def anns(made, tmp_path_factory):
    """A contributor's home: what the maintainer has, and `minus` of her own over `times`."""
    from lamina.api import load

    folder = tmp_path_factory.mktemp("ann")
    home = shutil.copytree(made, folder / "home", symlinks=True)
    rows = write_rows(folder / "minus.jsonl", "minus", 40)
    options = dict(zip((k[2:].replace("-", "_") for k in QUICK[::2]), QUICK[1::2], strict=True))
    load("times", home=home).train(
        rows, name="minus", author="Ann", licence="cc-by-4.0", exam_files=[str(rows)],
        accept_regression="a test", held_out=0.2, exams=("loss",), **options,
    )  # fmt: skip
    return home


@pytest.fixture
def ann(anns, tmp_path, monkeypatch, capsys):
    """The contributor's program."""
    home = shutil.copytree(anns, tmp_path / "ann" / "home", symlinks=True)
    return Program(home, monkeypatch, capsys)


@pytest.fixture
def keeper(made, tmp_path, monkeypatch, capsys):
    """The program of the maintainer, who keeps `times`."""
    home = shutil.copytree(made, tmp_path / "max" / "home", symlinks=True)
    return Program(home, monkeypatch, capsys)


@pytest.fixture
def offer(ann, tmp_path):
    """Proposes a stack of Ann's for `times`; the file."""

    def propose(name="minus", *options):
        path = tmp_path / f"{name}.oci.tar"
        ann("propose", name, path, "--onto", "times", "--author", "Ann", *options).done()
        return path

    return propose


def everything(home):
    """Every file of a store with its bytes; what a review leaves in the cache as well."""
    return {
        path.relative_to(home): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and "bases" not in path.parts and path.name != "lamina.lock"
    }


def refused(keeper, path, *texts, same=True):
    """Review and accept refuse for these reasons, and leave the store as it was."""
    before = everything(keeper.home)
    found = keeper("review", path, "--json")
    assert found.code == 1, found
    report = found.json
    assert report["verdict"] == "refuse"
    for text in texts:
        assert any(text in reason for reason in report["reasons"]), report["reasons"]
    keeper("accept", path).refused(texts[0], code=1)
    if same:
        assert everything(keeper.home) == before
    return report


# -- the way it should go --------------------------------------------------------------------------


def test_a_good_layer_is_reviewed_and_accepted(ann, keeper, offer):
    path = offer("minus", "--note", "it subtracts")
    report = keeper("review", path, "--json", LAMINA_AUTHOR="Max").done().json
    assert (report["verdict"], report["reasons"]) == ("accept", [])
    assert (report["onto"], report["reviewer"]) == ("times", "Max")
    assert {m["exam"] for m in report["measured"]} == {
        "sums/loss", "times/loss", "minus/loss", "minus.minus/loss",
    }  # fmt: skip
    for measured in report["measured"]:
        assert measured["identical"] is True
        assert measured["claimed"] == measured["value"]
        assert measured["beneath"] is not None
    assert report["contributors"] == ["Zoë", "Ann"]
    assert report["weights"]["embeddings_touched"] is False
    assert [each["layer"] for each in report["weights"]["beneath"]] == ["sums", "times"]
    assert report["licences"]["expression"] == "CC-BY-4.0"
    assert any("40 questions of exam minus.minus/loss" in text for text in report["travels"])
    listed = keeper("list", "--json").json["stacks"]
    assert [(s["name"], s["version"]) for s in listed] == [("sums", "v1"), ("times", "v1")]
    done = keeper("accept", path, LAMINA_AUTHOR="Max").done()
    assert "times:v2 is @" in done.out
    assert "work of Zoë, Ann" in done.out
    assert "that holds" in done.err  # the review is not made again
    (move, *_) = keeper("log", "times", "--json").json["moves"]
    assert (move["version"], move["author"], move["passed"]) == (2, "Max", True)
    assert move["contributors"] == ["Zoë", "Ann"]
    store = Store.open(keeper.home)
    stack = store.resolve(Name("times"))
    (review,) = store.evidence(stack.digest, REVIEW_TYPE, ReviewEvidence)
    assert (review.accepted, review.reviewer) == (True, "Max")
    assert keeper("verify", "--json").done().json["faults"] == []
    assert resolve(store, "times").layers[-1].digest == report["proposal"]["layer"]


def test_the_report_is_for_people_too(keeper, offer):
    shown = keeper("review", offer("minus", "--note", "it subtracts")).done().out
    assert "by Ann for times" in shown
    assert "they say: it subtracts" in shown
    assert "to the bit" in shown
    assert "embeddings untouched" in shown
    assert shown.splitlines()[-1].startswith("ACCEPT")


def test_accept_reviews_where_nobody_did(keeper, offer):
    done = keeper("accept", offer(), "--as", "more", "--author", "Max", "--json").done().json
    assert (done["name"], done["accepted_by"]) == ("more:v1", "Max")
    assert done["review"]["verdict"] == "accept"
    assert keeper("show", "times", "--json").json["layers"][-1]["name"] == "times"


def test_a_review_does_not_hold_once_the_name_has_moved(keeper, offer):
    path = offer()
    keeper("review", path).done()
    keeper("tag", "sums", "times", *WHY).done()
    keeper("accept", path).refused("trained on other parents", code=1)
    keeper("tag", "times:v1", "times").done()
    done = keeper("accept", path).done()
    assert "times:v4" in done.out


def test_the_same_proposal_has_the_same_bytes_and_skopeo_reads_it(ann, offer, tmp_path):
    path = offer()
    again = tmp_path / "again.oci.tar"
    ann("propose", "minus", again, "--onto", "times", "--author", "Ann").done()
    assert again.read_bytes() == path.read_bytes()
    ann("propose", "minus", again).refused("exists already")
    if shutil.which("skopeo") is None:
        pytest.skip("skopeo is not installed (apt-get install skopeo)")
    layer = Store.open(ann.home)
    top = resolve(layer, "minus").layers[-1]
    raw = ["skopeo", "inspect", "--raw", f"oci-archive:{path}:minus.3"]
    found = subprocess.run(raw, capture_output=True, check=True).stdout
    assert json.loads(found)["layers"] == [
        blob.model_dump(exclude_none=True) for blob in top.manifest.layers
    ]
    copy = ["skopeo", "copy", f"oci-archive:{path}:minus.3", f"oci:{tmp_path / 'out'}:minus"]
    subprocess.run(copy, capture_output=True, check=True)
    assert (tmp_path / "out" / "blobs" / "sha256" / top.digest.removeprefix("sha256:")).exists()


def test_the_layers_beneath_stay_at_home_unless_asked(ann, keeper, offer, tmp_path):
    thin, whole = offer(), tmp_path / "whole.oci.tar"
    ann("propose", "minus", whole, "--whole", "--onto", "times").done()
    assert whole.stat().st_size > 1.5 * thin.stat().st_size
    beneath = resolve(Store.open(ann.home), "times").layers
    with tarfile.open(thin) as tar:
        inside = "".join(tar.getnames())
    assert not any(layer.digest.removeprefix("sha256:") in inside for layer in beneath)
    for name in ("times", "sums"):
        keeper("rm", name).done()
    keeper("gc", "--grace", 0).done()
    refused(keeper, thin, "has no sha256")
    keeper("review", whole, "--onto", "new").done()
    assert [s["name"] for s in keeper("list", "--json").json["stacks"]] == []
    keeper("accept", whole, "--as", "new").done()


def test_a_missing_base_is_not_the_contributors_fault(empty, offer):
    path = offer("minus", "--whole")
    empty("review", path).refused("the base that it stands on is not here", "base pull")


# -- what is not accepted --------------------------------------------------------------------------


def test_a_layer_that_makes_others_forget_is_refused_unless_insisted_on(ann, keeper, offer):
    forge.put(ann.home, "loud", "minus", forge.times(forge.factors_of(ann.home, "minus"), -8),
              recipe=None, origin="imported")  # fmt: skip
    path = offer("loud")
    report = refused(keeper, path, "sums/loss", same=False)
    assert report["weights"] is not None
    done = keeper("accept", path, "--accept-regression", "we need it", "--author", "Max").done()
    assert "in spite of its review: we need it" in done.out
    (move, *_) = keeper("log", "times", "--json").json["moves"]
    assert (move["passed"], move["override"]) == (False, "we need it")


def test_weights_that_were_scaled_after_training_are_found_out(ann, keeper, offer):
    forge.put(ann.home, "strong", "minus", forge.times(forge.factors_of(ann.home, "minus"), 30))
    report = refused(keeper, offer("strong"), "the weights were changed after training", same=False)
    assert any("as large as any other layer" in text for text in report["looks"])


def test_an_alpha_that_is_not_the_recipes_is_found_out(ann, keeper, offer):
    factors = {
        name: type(f)(f.a_RI, f.b_OR, f.scale * 3)
        for name, f in forge.factors_of(ann.home, "minus").items()
    }
    forge.put(ann.home, "sly", "minus", factors)
    refused(keeper, offer("sly"), "its recipe says scale 2, its payload says 6", same=False)


def test_claims_that_it_does_not_reach(ann, keeper, offer, tmp_path):
    offer()
    path = tmp_path / "boast.oci.tar"
    forge.boast(ann.home, "minus", path, 0.5)
    report = refused(keeper, path, "it does not do what is claimed", same=False)
    assert not any(m["identical"] for m in report["measured"])
    refused_alone = keeper("accept", path, "--accept-regression", "x")
    refused_alone.refused('--despite "why"', code=1)
    keeper("accept", path, "--despite", "they are new to this").done()
    move = keeper("log", "times", "--json").json["moves"][0]
    assert (move["override"], move["despite"]) == (None, "they are new to this")
    assert "they are new to this" in keeper("log", "times").out


def test_results_of_others_are_not_taken_for_ones_own(ann, keeper, offer):
    store = Store.open(ann.home)
    stack = store.resolve(Name("minus"))
    for record in store.evidence(stack.digest, SCORES_TYPE, ScoresEvidence):
        perfect = tuple((0.001, weight, answer) for _, weight, answer in record.items)
        lie = record.model_copy(update={"items": perfect})
        assert lie.engine == ENGINE
        store.put_evidence(SCORES_TYPE, lie, stack)
    path = offer()
    refused(keeper, path, "it does not do what is claimed", same=False)
    keeper("accept", path, "--despite", "a test").done()
    found = keeper("exam", "times", "--json").done().json["scores"]
    assert all(score["value"] > 1 for score in found)


def test_a_review_that_came_along_is_not_believed(ann, keeper, offer):
    forge.put(ann.home, "strong", "minus", forge.times(forge.factors_of(ann.home, "minus"), 30))
    store = Store.open(ann.home)
    lie = ReviewEvidence(
        created="2026-01-01T00:00:00+00:00", reviewer="Max", onto="times", accepted=True,
        previous=store.resolve(Name("times")).digest, engine=ENGINE, seconds=1.0,
    )  # fmt: skip
    store.put_evidence(REVIEW_TYPE, lie, store.resolve(Name("strong")))
    refused(keeper, offer("strong"), "the weights were changed after training", same=False)


def test_other_parents(ann, keeper, offer):
    beneath = forge.put(ann.home, "sums2", "sums", author="Ann", name="sums2")
    store = Store.open(ann.home)
    forge.put(
        ann.home, "elsewhere", "minus",
        parents=resolve(store, f"@{beneath[7:]}").config.layers,
    )  # fmt: skip
    thin = offer("elsewhere")
    refused(keeper, thin, "pull it first", same=False)
    whole = thin.with_name("whole.oci.tar")
    ann("propose", "elsewhere", whole, "--whole", "--onto", "times").done()
    refused(keeper, whole, "it was trained on other parents", same=False)


def test_a_copy_of_anothers_layer_under_a_new_author(ann, keeper, offer):
    theirs = forge.turned(forge.factors_of(ann.home, "sums"))
    forge.put(ann.home, "mine", "minus", theirs, author="Eve")
    refused(keeper, offer("mine"), "100% of its update is that of sums @", same=False)
    own = forge.factors_of(ann.home, "minus")  # half of it, and smaller, is a copy still
    names = sorted(own)[: len(own) // 2]
    mixed = own | {name: theirs[name].weighted(3.0) for name in names}
    forge.put(ann.home, "mixed", "minus", mixed, author="Eve", origin="imported", recipe=None)
    refused(keeper, offer("mixed"), "of its update is that of sums @", same=False)


def test_what_a_licence_forbids_to_share_is_not_proposed_without_a_reason(ann, keeper, tmp_path):
    forge.put(ann.home, "stubborn", "minus", licence="cc-by-nd-4.0")
    ann("squash", "stubborn", "--as", "one", *WHY).done()
    path = tmp_path / "one.oci.tar"
    ann("propose", "one", path).refused("CC-BY-ND-4.0", "--despite", code=1)
    assert not path.exists()
    ann("propose", "one", path, "--despite", "Ann said yes").done()
    looks = keeper("review", path, "--onto", "one", "--json").done().json["looks"]
    assert any("its author says: Ann said yes" in text for text in looks)


def test_answers_to_withheld_questions_stay_at_home(ann, keeper, tmp_path):
    secret = write_rows(tmp_path / "secret.jsonl", "zweimal", 40)
    ann(
        "train", "--on", "times", "--data", secret, "--as", "quiet", *QUICK, *WHY, "--private",
        "--rehearsal-set", "none", "--held-out", 0.2,
    ).done()  # fmt: skip
    path = tmp_path / "quiet.oci.tar"
    ann("propose", "quiet", path, "--onto", "times").done()
    assert b"zweimal" not in path.read_bytes()
    report = keeper("review", path, "--json").json
    assert any("withheld" in text for text in report["looks"])
    assert not any("rehearsal" in text for text in report["travels"])


# -- damage ----------------------------------------------------------------------------------------


def test_every_damaged_file_is_refused_and_leaves_nothing(keeper, offer, tmp_path):
    path = offer()
    with tarfile.open(path) as tar:
        places = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    whole = path.read_bytes()
    before = everything(keeper.home)
    for name, offset, size in places:
        damaged = tmp_path / "damaged.oci.tar"
        data = bytearray(whole)
        data[offset + size // 2] ^= 1
        damaged.write_bytes(data)
        found = keeper("review", damaged)
        assert found.code in (1, 2), (name, found)
        assert "damaged" in found.out + found.err or name in ("oci-layout", "index.json")
        assert "Traceback" not in found.err
        assert everything(keeper.home) == before, name


@pytest.mark.parametrize("keep", [0, 100, 512, 5000, -10240])
def test_a_cut_off_file_is_refused(keeper, offer, tmp_path, keep):
    path = offer()
    cut = tmp_path / "cut.oci.tar"
    cut.write_bytes(path.read_bytes()[:keep])
    keeper("review", cut).refused("is not an archive that lamina reads")
    keeper("accept", cut).refused("is not an archive that lamina reads")


def test_no_file_and_no_archive(keeper, tmp_path):
    keeper("review", tmp_path / "nothing").refused("cannot read")
    keeper("review", tmp_path).refused("cannot read")
    text = tmp_path / "text"
    text.write_text("hello")
    keeper("review", text).refused("is not an archive")


# -- through a registry ----------------------------------------------------------------------------


@pytest.mark.skipif(registries.PROGRAM is None, reason="docker-registry is not installed")
def test_a_proposal_as_a_tag_in_a_registry(ann, keeper, tmp_path):
    with registries.running(tmp_path / "registry") as registry:
        place = registry.place("ann/minus", "proposal")
        made = ann("propose", "minus", place, "--onto", "times", "--json").done().json
        assert (made["place"], made["left_out"]) == (place, [])
        shown = keeper("pull", place, "--dry-run").done().out
        assert "work of Zoë, Ann" in shown
        assert "licences: CC-BY-4.0" in shown
        report = keeper("review", place, "--json", LAMINA_AUTHOR="Max").done().json
        assert (report["verdict"], report["onto"]) == ("accept", "times")
        assert all(measured["identical"] for measured in report["measured"])
        done = keeper("accept", place, LAMINA_AUTHOR="Max").done()
        assert "times:v2 is @" in done.out
        assert "that holds" in done.err
        # the report travels with the stack
        ours = registry.place("max/times", "v2")
        keeper("push", "times", ours).done()
    kinds = {e.artifactType for e in Store.open(keeper.home).entries()}
    assert REVIEW_TYPE in kinds


# -- whose word counts -----------------------------------------------------------------------------


def test_the_trust_policy_decides_who_must_have_signed(ann, keeper, offer, tmp_path):
    policy = config_of(keeper.home) / "policy.toml"
    policy.parent.mkdir(parents=True, exist_ok=True)
    policy.write_text('unsigned = "refuse"\n')
    unsigned = offer()
    refused(keeper, unsigned, "trust policy: @", same=False)
    ann("key", "new", "--name", "ann").done()
    ann("sign", "minus").done()
    unsigned.unlink()
    signed = offer()
    refused(keeper, signed, "trust policy: @", same=False)  # Ann's key is not known here
    (tmp_path / "ann.pub").write_text(ann("key", "export").done().out)
    keeper("key", "trust", tmp_path / "ann.pub", "--name", "ann").done()
    report = keeper("review", signed, "--json").done().json
    assert report["signed_by"] == ["ann"]
    assert "signed by ann" in keeper("review", signed).done().out
    keeper("key", "revoke", "ann", "--reason", "lost").done()
    keeper("accept", signed).refused("the trust policy refuses it now", code=1)
    assert keeper("show", "times", "--json").json["layers"][-1]["name"] == "times"
    keeper("accept", signed, "--despite", "I asked her").done()
