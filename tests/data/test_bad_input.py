import gzip
import json
import tracemalloc

import pytest

from lamina.core.errors import DataError, UsageError
from lamina.data.read import read
from lamina.data.readers.rows import MAX_LINE_BYTES
from tests.data.rows import chat, write

GOOD = chat("a good row", "yes")


def faults_of(*sources, **options):
    with pytest.raises(DataError) as caught:
        read(sources, **options)
    return caught.value.faults


def with_answer(**fields):
    row = chat()
    row["messages"][1] = {"role": "assistant", **fields}
    return row


def called(function):
    return with_answer(content=None, tool_calls=[{"type": "function", "function": function}])


def without_answer():
    return {"messages": [{"role": "user", "content": "hello?"}]}


def with_role(role):
    row = chat()
    row["messages"][0]["role"] = role
    return row


def weighted():
    return with_answer(content="2", weight=0)


DEEP = '{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}"

BAD_ROWS = {
    "not json": ("{'messages': []}", "not JSON: Expecting property name"),
    "half a line": ('{"messages": [', "not JSON: Expecting value"),
    "a list": ("[1, 2]", "a list, where a JSON object was expected"),
    "null": ("null", "null, where a JSON object was expected"),
    "deep": (DEEP, "JSON nested too deeply"),
    "huge number": ('{"n": ' + "9" * 5000 + "}", "not usable JSON"),
    "missing keys": (
        {"mesages": [], "id": None},
        "has the keys mesages, id (null); a chat row has messages (a list of role and content)",
    ),
    "no keys": ({}, "has no keys; a chat row has messages"),
    "other format": (
        {"instruction": "a", "output": "b"},
        "a row in alpaca format in a chat file; one file holds one format",
    ),
    "unknown role": (with_role("boss"), "messages[0]: unknown role 'boss'; known: system, user"),
    "no assistant": (without_answer(), "no assistant turn, so there is nothing to learn"),
    "no messages": ({"messages": []}, "no assistant turn"),
    "empty answer": (with_answer(content=" \n"), "messages[1]: an assistant turn without content"),
    "no answer": (with_answer(), "messages[1]: content: missing"),
    "no json in call": (
        with_answer(content="<tool_call>\nadd(1)\n</tool_call>"),
        "messages[1]: tool call isn't JSON",
    ),
    "unclosed call": (
        with_answer(content='<tool_call>\n{"name": "add"}'),
        "tool call isn't JSON: </tool_call> is missing",
    ),
    "two calls in one": (
        with_answer(content='<tool_call>{"name": "a"} {"name": "b"}</tool_call>'),
        "tool call isn't JSON: </tool_call> is missing",
    ),
    "text between calls": (
        with_answer(
            content='<tool_call>{"name": "a"}</tool_call> and <tool_call>{"name": "b"}</tool_call>'
        ),
        "tool call isn't JSON: text between two calls",
    ),
    "deep call": (
        with_answer(content="<tool_call>" + "[" * 100_000 + "</tool_call>"),
        "messages[1]: tool call isn't JSON",
    ),
    "arguments no object": (
        with_answer(content='<tool_call>{"name": "a", "arguments": [1]}</tool_call>'),
        "the arguments of 'a' are a list, not an object",
    ),
    "openai arguments": (called({"name": "a", "arguments": "[1]"}), "a list, not an object"),
    "openai no json": (called({"name": "a", "arguments": "{a"}), "arguments of 'a' are not JSON"),
    "tools no list": (chat(tools=7), "tools: a number, not a list of functions"),
    "bad schema": (
        chat(tools=[{"type": "function", "function": {"name": "f", "parameters": []}}]),
        "tools[0]: parameters: a list, not a JSON schema",
    ),
    "surrogate": (
        r'{"messages": [{"role": "user", "content": "a\ud83d"}]}',
        "messages[0]: content: character 2 is half of a surrogate pair (\\ud83d)",
    ),
    "surrogate in tool": (chat(tools=[{"name": "f", "x": "\udc00"}]), "half of a surrogate pair"),
    "nul character": (chat("a\0b"), "messages[0]: a NUL character in its content"),
    "nul byte": ('{"text": "\0"}', "NUL byte at byte "),
    "preference pair": ({**without_answer(), "chosen": "a", "rejected": "b"}, "a preference pair"),
    "weight": (weighted(), "messages[1]: weight 0; every answer is trained on"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_bad_row_is_named_with_its_line_and_can_be_skipped(tmp_path, name):
    row, reason = BAD_ROWS[name]
    path = write(tmp_path / "rows.jsonl", GOOD, row, chat("another"))
    (fault,) = faults_of(path)
    assert fault.startswith(f"{path}:2: ")
    assert reason in fault
    dataset = read([path], skip_bad=True)
    assert len(dataset.examples) == 2
    assert [(bad.file, bad.line) for bad in dataset.bad] == [(str(path), 2)]
    assert dataset.files[0].rows == 3


BAD_ELSEWHERE = {
    "alpaca output": ({"instruction": "a", "output": " "}, "output is empty"),
    "alpaca instruction": ({"instruction": 1, "output": "b"}, "instruction: a number, not text"),
    "alpaca input": ({"instruction": "a", "input": 1, "output": "b"}, "input: a number, not text"),
    "alpaca history": (
        {"instruction": "a", "output": "b", "history": ["q"]},
        "history: not a list",
    ),
    "completion": ({"prompt": "a", "completion": ""}, "completion is empty"),
    "completion type": ({"prompt": "a", "completion": 2}, "completion: a number, not text"),
    "choice": (
        {"question": "a", "choices": ["b"], "answer_index": 1},
        "answer_index: 1 with 1 choices",
    ),
    "choices": ({"question": "a", "choices": "b", "answer_index": 0}, "choices: text, not a list"),
    "sharegpt": ({"conversations": "a"}, "conversations: text, not a list"),
    "sharegpt turn": ({"conversations": ["a"]}, "messages[0]: text, not an object"),
    "sharegpt role": ({"conversations": [{"from": "x", "value": "a"}]}, "unknown role 'x'"),
    "sharegpt call": (
        {"conversations": [{"from": "function_call", "value": "add(1)"}]},
        "tool_calls[0]: no function name",
    ),
    "text": ({"text": "\n"}, "text is empty"),
    "text type": ({"text": ["a"]}, "text: a list, not text"),
    "text nul": ({"text": "a\0"}, "a NUL character in its text"),
    "text surrogate": ('{"text": "\\ud800"}', "half of a surrogate pair"),
}


@pytest.mark.parametrize("name", BAD_ELSEWHERE)
def test_bad_rows_of_other_formats_are_named(tmp_path, name):
    row, reason = BAD_ELSEWHERE[name]
    path = write(tmp_path / "rows.jsonl", row)
    (fault,) = faults_of(path)
    assert fault.startswith(f"{path}:1: ")
    assert reason in fault


def test_all_bad_rows_of_all_files_are_reported_at_once(tmp_path):
    first = write(tmp_path / "a.jsonl", GOOD, "nonsense", without_answer())
    second = write(tmp_path / "b.jsonl", GOOD, *[with_role("boss")] * 30)
    missing = tmp_path / "c.jsonl"
    with pytest.raises(
        DataError, match="32 of 34 rows cannot be used; 1 of 3 sources cannot"
    ) as caught:
        read([first, second, missing])
    places = [fault.rpartition(str(tmp_path))[2].split(": ")[0] for fault in caught.value.faults]
    assert places == ["/c.jsonl", "/a.jsonl:2", "/a.jsonl:3"] + [
        f"/b.jsonl:{line}" for line in range(2, 32)
    ]
    assert "… and 13 more" in str(caught.value)
    assert "--skip-bad" in caught.value.hint


def test_skipping_everything_is_refused(tmp_path):
    path = write(tmp_path / "rows.jsonl", "x", "y")
    assert len(faults_of(path, skip_bad=True)) == 2


def test_all_faults_of_a_row_are_in_its_reason(tmp_path):
    row = with_answer(content="")
    row["messages"][0]["content"] = "a\0"
    (fault,) = faults_of(write(tmp_path / "rows.jsonl", row))
    assert "without content" in fault
    assert "NUL character" in fault


@pytest.mark.parametrize("skip_bad", [False, True])
def test_files_that_cannot_be_read_are_never_skipped(tmp_path, skip_bad):
    good = write(tmp_path / "good.jsonl", GOOD)
    empty, blank = tmp_path / "empty.jsonl", tmp_path / "blank.txt"
    empty.write_bytes(b"")
    blank.write_bytes(b"\n \n")
    archive, damaged = tmp_path / "rows.zip", tmp_path / "rows.jsonl.gz"
    archive.write_bytes(b"PK")
    damaged.write_bytes(gzip.compress(good.read_bytes() * 50)[:-9])
    no_gzip, parquet = tmp_path / "no.jsonl.gz", tmp_path / "rows.parquet"
    no_gzip.write_bytes(good.read_bytes())
    parquet.write_bytes(b"PAR1 no PAR1")
    unknown = write(tmp_path / "unknown.jsonl", {"prompt": "a", "code": "b"})
    pytest.importorskip("pyarrow")
    expected = {
        tmp_path / "missing.jsonl": "no such file",
        tmp_path / "missing": "no such file",
        tmp_path / ("long" * 100): "File name too long",
        tmp_path: "is empty: it holds no rows",
        empty: "is empty: it holds no rows",
        blank: "is empty: it holds no rows",
        archive: "not a whole zip file",
        damaged: "not a whole gzip file",
        no_gzip: "not a whole gzip file",
        parquet: "not a readable Parquet file",
        unknown: "its rows are in no known format: line 1 has the keys prompt, code (chat: ",
    }
    faults = faults_of(good, *expected, skip_bad=skip_bad)
    assert len(faults) == len(expected)
    for fault, (path, reason) in zip(faults, expected.items(), strict=True):
        assert fault.startswith(f"{path}: {reason}")


def test_a_wrong_encoding_is_named_with_line_and_byte(tmp_path):
    path = tmp_path / "rows.jsonl"
    first = json.dumps(GOOD).encode() + b"\n"
    latin = json.dumps(chat("caf\xe9"), ensure_ascii=False).encode("latin-1")
    path.write_bytes(first + latin + b"\n")
    offset = len(first) + latin.index(b"\xe9")
    (fault,) = faults_of(path)
    assert fault == f"{path}:2: not UTF-8 at byte {offset} (0xe9); save as UTF-8"
    assert len(read([path], skip_bad=True).examples) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_utf16_is_recognised(tmp_path, encoding):
    path = tmp_path / "rows.jsonl"
    path.write_bytes((json.dumps(GOOD) + "\n").encode(encoding))
    fault = faults_of(path)[0]
    assert ("UTF-16 text; save it as UTF-8" in fault) or ("NUL byte at byte" in fault)


def test_a_byte_order_mark_is_no_fault_and_counts_in_offsets(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(GOOD) + "\r\n", encoding="utf-8-sig", newline="")
    assert len(read([path]).examples) == 1
    path.write_bytes(b"\xef\xbb\xbf{\xff}\n")
    assert "at byte 4 (0xff)" in faults_of(path)[0]


def test_a_huge_line_is_a_fault_that_never_fills_the_memory(tmp_path):
    path = tmp_path / "rows.jsonl"
    size = 50_000_000
    with path.open("wb") as handle:
        handle.write(json.dumps(GOOD).encode() + b"\n")
        for _ in range(50):
            handle.write(b"x" * (size // 50))
        handle.write(b"\n" + json.dumps(chat("after it")).encode() + b"\n")
    tracemalloc.start()
    try:
        dataset = read([path], skip_bad=True)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3 * MAX_LINE_BYTES
    assert len(dataset.examples) == 2
    (bad,) = dataset.bad
    assert (bad.line, bad.reason) == (2, f"longer than 10,000,000 bytes ({size + 1:,})")
    assert dataset.files[0].bytes == path.stat().st_size


def test_what_is_wrong_in_a_json_array_is_named_with_its_line(tmp_path):
    path = tmp_path / "rows.json"

    def reasons(text):
        path.write_text(text, encoding="utf-8")
        return [fault.removeprefix(f"{path}:") for fault in faults_of(path)]

    good = json.dumps(GOOD)
    assert reasons(f"[\n{good},\n7\n]")[0].startswith("3: a number, where a JSON object")
    assert reasons(f"[\n{good},\n\n{{oops}}]")[0].startswith("4: not JSON")
    assert reasons(f"[{good}\n{good}]")[0].startswith("1: no comma or ] after it")
    assert reasons(f"[{good},\n{'[' * 100_000}")[0].startswith("2: not JSON: nested too deeply")
    assert reasons(f"[{good}]\n{good}")[0] == "1: text after the end of the array"
    assert reasons(f"[{good},\n ")[0].startswith("2: not JSON")
    assert reasons("[]") == [" is empty: it holds no rows"]
    path.write_bytes(b"[\n\xff]")
    assert "line 2: not UTF-8 at byte 2" in faults_of(path)[0]


def test_what_is_wrong_in_a_csv_file_is_named_with_its_line(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(
        b'prompt,completion\n"a\nb",c\nd\n"e"f,g\nh,caf\xe9\ni,j\n'
        + b"k,"
        + b"x" * 140_000
        + b"\nl,\n"
    )
    faults = [fault.removeprefix(f"{path}:") for fault in faults_of(path)]
    expected = [
        "4: 1 fields, but the header has 2",
        "5: not CSV: ",
        "6: not UTF-8 at byte ",
        "8: not CSV: field larger than field limit",
        "9: has the keys prompt, completion (null)",
    ]
    assert len(faults) == len(expected)
    for fault, start in zip(faults, expected, strict=True):
        assert fault.startswith(start)
    assert len(read([path], skip_bad=True).examples) == 2


def test_an_open_quote_in_a_csv_file_is_a_fault(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('prompt,completion\na,b\nc,"d\n', encoding="utf-8")
    (fault,) = faults_of(path)
    assert fault.startswith(f"{path}:3: not CSV: ")


def test_a_csv_header_that_cannot_be_read_ends_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"prompt,\xff\na,b\n")
    (fault,) = faults_of(path)
    assert fault.startswith(f"{path}:1: the header cannot be read: not UTF-8 at byte 7")


def test_bad_lines_of_a_text_file_are_named_and_the_rest_is_kept(tmp_path):
    path = tmp_path / "book.txt"
    path.write_bytes(b"one\n\ntwo\n\xff\nthree\n\0\n")
    first, second = faults_of(path)
    assert first.startswith(f"{path}:4: not UTF-8 at byte 9")
    assert second.startswith(f"{path}:6: NUL byte at byte 17")
    assert [row.text for row in read([path], skip_bad=True).examples] == ["one\n\ntwo", "three"]


def test_a_text_file_is_no_conversation(tmp_path):
    path = write(tmp_path / "book.txt", "once upon a time")
    assert "a row in text format in a chat file" in faults_of(path, format="chat")[0]


def test_an_unknown_format_gets_the_nearest_known_one():
    with pytest.raises(UsageError, match="did you mean 'alpaca'"):
        read(["x.jsonl"], format="alpacca")


def test_no_data_is_refused():
    with pytest.raises(UsageError, match="no data given"):
        read([])
