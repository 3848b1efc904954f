import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded


def row(ids, mask):
    return Encoded(np.array(ids, np.int32), np.array(mask, np.bool_), "sha256:" + "0" * 64)


rows_of = st.lists(
    st.lists(st.tuples(st.integers(1, 99), st.booleans()), min_size=1, max_size=8),
    min_size=1,
    max_size=5,
).map(lambda rows: [row(*zip(*pairs, strict=True)) for pairs in rows])


@given(rows_of)
def test_each_target_is_predicted_from_the_position_before_it(rows):
    batch = collate(rows, pad_id=0)
    flat = batch.ids.flatten()
    assert torch.equal(flat[batch.positions + 1], batch.targets)
    assert torch.equal(batch.positions // batch.ids.shape[1], batch.row_of_target)
    wanted = [(r, int(x.ids[t])) for r, x in enumerate(rows) for t in range(1, len(x)) if x.mask[t]]
    assert list(zip(batch.row_of_target.tolist(), batch.targets.tolist(), strict=True)) == wanted
    assert (batch.positions % batch.ids.shape[1] + 1 < batch.lengths[batch.row_of_target]).all()


@given(rows_of)
def test_rows_are_padded_on_the_right(rows):
    batch = collate(rows, pad_id=-7)
    assert batch.lengths.tolist() == [len(x) for x in rows]
    for index, each in enumerate(rows):
        assert batch.ids[index, : len(each)].tolist() == each.ids.tolist()
        assert (batch.ids[index, len(each) :] == -7).all()


def test_everything_is_int64_and_moves_together():
    batch = collate([row([1, 2, 3], [False, True, False])], pad_id=0).to("meta")
    fields = (batch.ids, batch.positions, batch.targets, batch.lengths, batch.row_of_target)
    assert {field.dtype for field in fields} == {torch.int64}
    assert {field.device.type for field in fields} == {"meta"}


@pytest.mark.parametrize("rows", [[], [row([], [])]])
def test_empty_batches_are_refused(rows):
    with pytest.raises(ValueError, match="at least one row"):
        collate(rows, pad_id=0)
