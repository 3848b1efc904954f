"""Updates with private rows: nothing of them travels, and what was private once stays so."""

import pytest

from lamina.core.report import Silent
from lamina.data.read import read
from lamina.flows import learn, rehearsal, seen_rows, update
from lamina.flows.questions import carried
from lamina.flows.reproduce import reproduce
from lamina.stack.resolve import resolve
from tests.flows.world import request, write_rows

pytestmark = pytest.mark.slow


def trained(store, data, **fields):
    run = learn.prepare(store, request(data, "mine", **fields), Silent())
    return learn.execute(store, run, Silent()).stack.layers[0]


def updated(store, data, **fields):
    asked = update.Request(stack="mine", data=[data], accept_regression="a test", **fields)
    run = update.prepare(store, asked, Silent())
    return learn.execute(store, run, Silent()).stack.layers[0]


def leaks(store, layer, data) -> list[str]:
    """The blobs of a layer that hold a question of these rows."""
    asked = [row.prompt[0].content.encode() for row in read([data]).examples]
    blobs = {blob.title: store.read(blob.digest) for blob in layer.manifest.layers}
    return [title for title, held in blobs.items() if any(each in held for each in asked)]


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_private_rows_of_an_update_do_not_travel(store, tmp_path, held_out):
    old = write_rows(tmp_path / "old.jsonl", 40)
    before = trained(store, old, held_out=held_out)
    assert not seen_rows.is_private(before)
    secret = write_rows(tmp_path / "secret.jsonl", 40, word="passphrase")
    asked_more = (("held_out", 0.3),)
    after = updated(store, secret, private=True, overrides=asked_more)
    assert seen_rows.is_private(after)
    assert after.config.exams
    assert all(exam.private for exam in after.config.exams)
    assert after.manifest.blob(seen_rows.FILE) is None
    assert leaks(store, after, secret) == []
    (exam,) = carried(store, [after])
    words = [item.prompt[0].content for item in exam.items]
    assert any("passphrase" in each for each in words)
    assert any("colour" in each for each in words) == bool(held_out)
    assert rehearsal.FILE in leaks(store, after, old)  # what travelled before still does
    assert reproduce(store, "mine", (), Silent(), lambda: False).equal


@pytest.mark.parametrize("held_out", [0.0, 0.3])
def test_private_once_is_private_for_good(store, tmp_path, held_out):
    secret = write_rows(tmp_path / "secret.jsonl", 40, word="passphrase")
    assert seen_rows.is_private(trained(store, secret, private=True, held_out=held_out))
    fresh = write_rows(tmp_path / "fresh.jsonl", 40, word="fruit")
    asked_more = (("held_out", 0.3),)
    after = updated(store, fresh, overrides=asked_more)  # without --private
    assert seen_rows.is_private(after)
    assert after.config.exams
    assert all(exam.private for exam in after.config.exams)
    assert after.manifest.blob(seen_rows.FILE) is None
    assert leaks(store, after, secret) == leaks(store, after, fresh) == []
    assert len(seen_rows.of_layer(store, resolve(store, "mine").layers[0])) == 80
    assert reproduce(store, "mine", (), Silent(), lambda: False).equal
