import pytest

from lamina.data.example import Example
from lamina.data.exams import default_scorers, from_jsonl, items_from_examples, to_jsonl
from lamina.data.read import read
from lamina.data.split import split

pytestmark = pytest.mark.slow  # many files of many kinds

SETS = {
    "train_dolly_small.jsonl": ("chat", 999, 0, ("loss",)),
    "train_glaive_tools.jsonl": ("chat", 262, 0, ("loss",)),
    "train_gpteacher_roleplay.jsonl": ("chat", 1923, 0, ("loss",)),
    "train_gsm8k.jsonl": ("chat", 7473, 0, ("loss", "numeric")),
    "train_instruction_induction.jsonl": ("chat", 7258, 0, ("loss", "exact")),
    "train_oasst_sample.jsonl": ("chat", 100, 0, ("loss",)),
    "train_selfinstruct_seed.jsonl": ("chat", 175, 0, ("loss",)),
    "train_sgd_dialogue.jsonl": ("chat", 1397, 0, ("loss",)),
    "train_sgd_toolstep.jsonl": ("chat", 4197, 3, ("loss", "tool_call")),
    "train_stream_eol.jsonl": ("chat", 5733, 12, ("loss",)),
    "train_lm_tinyshakespeare.txt": ("text", 616, 0, ("loss",)),
    "train_lm_wikitext2_valid.txt": ("text", 755, 0, ("loss",)),
    "eval_gsm8k_test.jsonl": ("completion", 1319, 0, ("loss", "numeric")),
    "eval_sgd_toolstep.jsonl": ("chat", 500, 0, ("loss", "tool_call")),
}


@pytest.fixture(params=SETS)
def real_set(request, real_data):
    path = real_data / request.param
    if not path.exists():
        pytest.skip(f"{path} is absent")
    return path, SETS[request.param]


def test_real_sets_read_without_faults_and_give_exams(real_set):
    path, (form, rows, duplicates, scorers) = real_set
    dataset = read([path])
    assert (dataset.format, len(dataset.examples), dataset.duplicates) == (form, rows, duplicates)
    assert default_scorers(dataset.examples) == scorers
    parts = split(dataset.examples, 0.05, 200)
    assert 0 < len(parts.held_out) <= 200
    assert len(parts.train) > 0.9 * rows
    for scorer in scorers:
        items = items_from_examples(parts.held_out, scorer)
        assert from_jsonl(to_jsonl(items)) == items
    for example in parts.held_out:
        assert Example.from_json(example.to_json()) == example


def test_no_tool_call_is_left_as_text(real_data):
    path = real_data / "train_sgd_toolstep.jsonl"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    messages = [m for row in read([path]).examples for m in row.messages]
    assert sum(len(message.tool_calls) for message in messages) > 2000
    assert not any(m.role == "assistant" and "<tool_call>" in m.content for m in messages)
