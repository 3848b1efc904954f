import csv
import gzip
import hashlib
import io
import json
import subprocess
import sys

import pytest

from lamina.core.errors import DataError, MissingPartError, UsageError
from lamina.data.example import Example
from lamina.data.read import read
from lamina.data.readers.hub import HubName, parse_hub_name
from lamina.data.readers.registry import FORMATS, detect
from lamina.data.readers.sources import open_source
from tests.data.rows import chat, write

QUESTION, ANSWER = "What is 1 + 1?", "2"
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


def one(tmp_path, row, name="rows.jsonl", **options):
    (found,) = read([write(tmp_path / name, row)], **options).examples
    return found


def spoken(example):
    return [(message.role, message.content) for message in example.messages]


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("chat", chat(QUESTION, ANSWER)),
        ("completion", {"prompt": QUESTION, "completion": ANSWER}),
        ("completion", {"prompt": QUESTION, "response": ANSWER}),
        ("completion", {"question": QUESTION, "answer": ANSWER}),
        ("completion", {"query": QUESTION, "answer": ANSWER}),
        ("completion", {"input": QUESTION, "output": ANSWER}),
        ("completion", {"question": QUESTION, "choices": ["1", "2"], "answer_index": 1}),
        (
            "completion",
            {
                "prompt": [{"role": "user", "content": QUESTION}],
                "completion": [{"role": "assistant", "content": ANSWER}],
            },
        ),
        ("alpaca", {"instruction": QUESTION, "output": ANSWER}),
        ("alpaca", {"instruction": QUESTION, "input": "", "output": ANSWER}),
        ("alpaca", {"instruction": QUESTION, "context": None, "response": ANSWER}),
        (
            "sharegpt",
            {
                "conversations": [
                    {"from": "human", "value": QUESTION},
                    {"from": "gpt", "value": ANSWER},
                ]
            },
        ),
        ("sharegpt", {"conversations": chat(QUESTION, ANSWER)["messages"]}),
    ],
)
def test_every_format_says_the_same(tmp_path, form, row):
    dataset = read([write(tmp_path / "rows.jsonl", {"extra": 1.5, **row})])
    assert dataset.format == form
    (found,) = dataset.examples
    assert spoken(found) == [("user", QUESTION), ("assistant", ANSWER)]
    assert read([tmp_path / "rows.jsonl"], format=form).examples == dataset.examples


def test_exam_columns_are_picked_up_in_every_format(tmp_path):
    columns = {"accept": ["2"], "choices": ["1", "2"], "answer_index": 1, "accept_calls": []}
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]
    rows = [
        chat(QUESTION, ANSWER),
        {"prompt": QUESTION, "completion": ANSWER},
        {"instruction": QUESTION, "output": ANSWER},
        {"conversations": turns},
    ]
    found = {one(tmp_path, row | columns) for row in rows}
    assert found == {Example.from_json(chat(QUESTION, ANSWER) | columns)}


def test_alpaca_joins_instruction_and_input_and_keeps_system_and_history(tmp_path):
    row = {"instruction": "Add.", "input": "1, 2", "output": "3", "system": "Be brief."}
    found = one(tmp_path, row | {"history": [["q", "a"]]})
    assert spoken(found) == [
        ("system", "Be brief."),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Add.\n\n1, 2"),
        ("assistant", "3"),
    ]


def test_sharegpt_knows_system_tools_calls_and_observations(tmp_path):
    row = {
        "system": "Be brief.",
        "tools": '[{"name": "add", "parameters": {"type": "object"}}]',
        "conversations": [
            {"from": "human", "value": "1 + 2?"},
            {"from": "function_call", "value": '{"name": "add", "arguments": {"a": 1}}'},
            {"from": "observation", "value": "3"},
            {"from": "gpt", "value": "It is 3."},
        ],
    }
    found = one(tmp_path, row)
    assert [m.role for m in found.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert found.messages[2].tool_calls[0].arguments == '{"a":1}'
    assert json.loads(found.tools[0])["function"]["name"] == "add"


def test_tool_call_blocks_become_tool_calls(tmp_path):
    (call,) = one(tmp_path, chat(QUESTION, CALL)).answer.tool_calls
    assert (call.name, call.arguments) == ("add", '{"a":1}')
    tricky = '<tool_call>{"name": "say", "arguments": {"text": "</tool_call>"}}</tool_call>'
    answer = one(tmp_path, chat(QUESTION, f" {CALL}\n{tricky}\n")).answer
    assert [call.name for call in answer.tool_calls] == ["add", "say"]
    assert answer.content == ""


def test_an_answer_that_only_mentions_tool_calls_stays_text(tmp_path):
    for text in (f"I call {CALL}", f"{CALL} is how one calls"):
        answer = one(tmp_path, chat(QUESTION, text)).answer
        assert (answer.content, answer.tool_calls) == (text, ())


def test_openai_names_and_call_ids_are_understood(tmp_path):
    calls = [
        {"id": name, "type": "function", "function": {"name": name, "arguments": "{}"}}
        for name in ("first", "second")
    ]
    row = {
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "tool_call_id": "second", "content": "2"},
            {"role": "tool", "tool_call_id": "first", "content": "1"},
            {"role": "assistant", "content": "done"},
        ]
    }
    messages = one(tmp_path, row).messages
    assert messages[0].role == "system"
    assert [(m.name, m.content) for m in messages[2:4]] == [("first", "1"), ("second", "2")]


def test_text_files_become_rows_of_whole_paragraphs(tmp_path):
    paragraphs = [f"{number} " + "word " * 100 for number in range(20)]
    path = tmp_path / "book.txt"
    path.write_text("\n\n \n" + "\n\n\n".join(paragraphs) + "\n", encoding="utf-8")
    dataset = read([path])
    assert dataset.format == "text"
    rows = [row.text for row in dataset.examples]
    assert "\n\n".join(rows).split("\n\n") == paragraphs
    assert all(500 < len(row) <= 2000 for row in rows)
    assert one(tmp_path, "a line\nanother", name="note.md").text == "a line\nanother"


def test_a_very_long_paragraph_is_cut_at_line_ends(tmp_path):
    lines = [f"line {number:04d}" for number in range(1000)]
    dataset = read([write(tmp_path / "poem.txt", *lines)])
    rows = [row.text for row in dataset.examples]
    assert max(map(len, rows)) <= 2000
    assert "\n".join(rows).split("\n") == lines


def test_short_paragraphs_fill_a_row_but_not_more(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text("\n\n".join(["word"] * 2000), encoding="utf-8")
    found = read([path])
    assert found.duplicates > 0
    assert 1990 < max(len(row.text) for row in found.examples) <= 2000


def test_a_file_is_hashed_to_its_end_however_few_rows_were_taken(tmp_path):
    path = write(tmp_path / "rows.jsonl", *[chat(f"{number}" * 100) for number in range(3000)])
    with open_source(path) as opened:
        next(opened.rows)
        sha256, size = opened.seal()
    assert size == path.stat().st_size
    assert sha256 == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()


def test_plain_text_also_comes_as_json_rows(tmp_path):
    assert one(tmp_path, {"text": "once upon a time"}).text == "once upon a time"


def test_files_are_hashed_and_counted(tmp_path):
    path = write(tmp_path / "rows.jsonl", chat("a"), "", chat("b"), chat("a"))
    packed = tmp_path / "packed.jsonl.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    dataset = read([path, packed], licence="MIT")
    assert len(dataset.examples) == 2
    assert dataset.duplicates == 4
    assert dataset.licence == "MIT"
    for source, file in zip((path, packed), dataset.files, strict=True):
        assert file.name == source.name
        assert file.bytes == source.stat().st_size
        assert file.sha256 == "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
        assert file.rows == 3


def test_a_json_array_is_read_as_its_elements(tmp_path):
    rows = [chat("a"), chat("b")]
    path = tmp_path / "rows.json"
    for text in (json.dumps(rows), "\ufeff\n" + json.dumps(rows, indent=2) + "\n"):
        path.write_text(text, encoding="utf-8")
        assert len(read([path]).examples) == 2
    assert len(read([write(path, *rows)]).examples) == 2


def csv_of(rows, delimiter=","):
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_tables_as_text(tmp_path, name, delimiter):
    rows = [
        {"instruction": 'Say "a"\nand b', "input": "", "output": "a, b; c\td"},
        {"instruction": "Add", "input": "1, 2", "output": "3"},
    ]
    path = tmp_path / name
    path.write_text(csv_of(rows, delimiter), encoding="utf-8-sig", newline="")
    first, second = read([path]).examples
    assert spoken(first) == [("user", 'Say "a"\nand b'), ("assistant", "a, b; c\td")]
    assert second.prompt[0].content == "Add\n\n1, 2"


def test_conversations_in_csv_cells_are_json(tmp_path):
    row = {"messages": json.dumps(chat(QUESTION, ANSWER)["messages"]), "accept": "2", "tools": ""}
    path = tmp_path / "rows.csv"
    path.write_text(csv_of([row]), encoding="utf-8")
    (found,) = read([path]).examples
    assert spoken(found) == [("user", QUESTION), ("assistant", ANSWER)]
    assert found.accept == ("2",)


def test_parquet_tables(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    called = chat("b", "x", tools=[{"type": "function", "function": {"name": "add"}}])
    arguments = '{"a": 1}'
    called["messages"][1]["tool_calls"] = [{"function": {"name": "add", "arguments": arguments}}]
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([chat("a", tools=None), called]), path)
    dataset = read([path])
    assert dataset.examples == (Example.from_json(chat("a")), Example.from_json(called))
    assert dataset.files[0].rows == 2
    assert dataset.files[0].sha256.endswith(hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """`datasets` may look at this machine only, and caches under the test's own folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def test_hub_data_sets(tmp_path, no_network):
    folder = tmp_path / "puzzles"
    folder.mkdir()
    write(folder / "train.jsonl", chat("a"), chat("b"))
    write(folder / "test.jsonl", chat("c"))
    no_network.disable_progress_bars()
    found = read([f"hf:{folder}"])
    assert [row.prompt[0].content for row in found.examples] == ["a", "b"]
    assert found.files[0].rows == 2
    assert found.files == read([f"hf:{folder}"]).files
    (row,) = read([f"hf:{folder}:test"]).examples
    assert row.prompt[0].content == "c"
    with pytest.raises(DataError, match="cannot be loaded"):
        read([f"hf:{folder}:nowhere"])


def test_hub_names():
    assert parse_hub_name("hf:openai/gsm8k") == HubName("openai/gsm8k", None, "train", None)
    assert parse_hub_name("hf:openai/gsm8k/main:test@v1") == HubName(
        "openai/gsm8k", "main", "test", "v1"
    )
    for wrong in ("hf:", "hf:gsm8k", "hf:a/b/c/d", "hf:a//b"):
        with pytest.raises(UsageError, match="names no data set"):
            parse_hub_name(wrong)


@pytest.mark.parametrize(
    ("library", "extra", "source"),
    [("pyarrow", "parquet", "rows.parquet"), ("datasets", "datasets", "hf:org/name")],
)
def test_a_missing_library_is_named_with_what_brings_it(
    tmp_path, monkeypatch, library, extra, source
):
    monkeypatch.setitem(sys.modules, library, None)
    if not source.startswith("hf:"):
        source = str(tmp_path / source)
        write(tmp_path / "rows.parquet", "x")
    with pytest.raises(MissingPartError, match=rf"pip install 'lamina\[{extra}\]'"):
        read([source])


def test_files_in_several_formats_are_named_together_and_read_again_by_that_name(tmp_path):
    first = write(tmp_path / "a.jsonl", chat("a"))
    second = write(tmp_path / "b.txt", "once upon a time")
    dataset = read([second, first])
    assert dataset.format == "chat+text"
    assert read([second, first], format=dataset.format) == dataset


def test_detection_takes_the_first_format_that_most_rows_fit():
    assert detect([chat(prompt="a", completion="b")]) == "chat"
    assert detect([chat(), {"text": "a"}, {"text": "b"}]) == "text"
    assert detect([{"a": 1}, {"messages": None}]) is None
    assert list(FORMATS) == ["chat", "sharegpt", "alpaca", "completion", "images", "text"]


def test_a_named_format_is_not_guessed(tmp_path):
    path = write(tmp_path / "rows.jsonl", chat(prompt="a", completion="b"))
    assert read([path]).format == "chat"
    dataset = read([path], format="completion")
    assert dataset.format == "completion"
    assert spoken(dataset.examples[0]) == [("user", "a"), ("assistant", "b")]


def test_one_path_may_stand_alone(tmp_path):
    assert len(read(str(write(tmp_path / "rows.jsonl", chat()))).examples) == 1


def test_reading_needs_no_heavy_library():
    code = (
        "import sys, lamina.data.read, lamina.data.split, lamina.data.exams; "
        "heavy = ('torch', 'transformers', 'numpy', 'pyarrow', 'datasets'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
