"""Bad data and bad bases, as users have them: refused with place and reason, no traceback."""

import json

import pytest

from tests.made import QUICK, write_rows
from tests.pico import CHATML, pico_base


def train(program, data, *options, on="pico"):
    return program("train", "--on", on, "--data", data, "--as", "new", *QUICK, *options)


def chat_row(*messages, **rest):
    return json.dumps({"messages": list(messages), **rest}).encode() + b"\n"


USER = {"role": "user", "content": "hello"}
ANSWER = {"role": "assistant", "content": "hello to you"}
GOOD = chat_row(USER, ANSWER)
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": "{broken"}}],
}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n\n", ""),
        ("[{".encode("utf-16"), ""),
        (GOOD + '{"prompt": "caf\xe9", "completion": "x"}\n'.encode("latin-1"), "2"),
        (GOOD + b'{"messages"\n', "2"),
        (GOOD + b'{"message": []}\n', "2"),
        (GOOD + chat_row(USER, {"role": "robot", "content": "beep"}), "robot"),
        (GOOD + chat_row(USER, CALL), "2"),
        (GOOD + chat_row(USER), "2"),
        (b"\x00" * 64, ""),
    ],
    ids=["empty", "blank", "utf16", "latin1", "cut", "keys", "role", "call", "unanswered", "zeros"],
)
def test_bad_rows_are_refused_before_any_training(program, tmp_path, content, said):
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    train(program, path).refused("data.jsonl", said)
    assert program("runs", "--json").json == {"runs": []}
    assert program("list", "--json").json == program("list", "--json").json


def test_every_bad_row_is_named_at_once_and_can_be_left_out(program, tmp_path, rows):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"{\n" + rows.read_bytes() + chat_row({"role": "robot", "content": "x"}))
    train(program, path).refused("1", "82", "robot")
    result = train(program, path, "--skip-bad", "--steps", 1, "--json").done()
    assert result.err.count("skipped") == 2
    shown = program("show", result.json["layer"], "--json").json
    assert shown["data"]["skipped"] == 2


def test_a_line_of_50_megabytes_is_read_or_refused_without_drama(program, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(GOOD + b'{"prompt": "x", "completion": "' + b"y" * 50_000_000 + b'"\n')
    train(program, path).refused("data.jsonl", "2")


def test_missing_files_and_folders_are_named(program, tmp_path):
    train(program, tmp_path / "none.jsonl").refused("none.jsonl")
    train(program, tmp_path).refused(str(tmp_path))
    train(program, tmp_path / "none.jsonl", on="nobody").refused("nobody")


def test_names_that_cannot_be_given_are_refused(program, rows):
    for name in ("pico", "new:v1", "New"):
        program("train", "--on", "pico", "--data", rows, "--as", name).refused(name)


def test_unknown_targets_are_refused_with_the_known(program, rows):
    train(program, rows, "--target", "q_prj").refused("q_prj", "q_proj")
    assert program("runs", "--json").json == {"runs": []}


class TestBases:
    def pull(self, program, folder, *options):
        return program("base", "pull", folder, *options)

    def test_pulling_twice_stores_once(self, program, pico):
        again = self.pull(program, pico, "--as", "other", "--json").done().json
        assert again["new"] is False
        assert "already in the store" in self.pull(program, pico, "--as", "other").done().out

    def test_a_base_without_a_template_gets_chatml(self, program, tmp_path, rows):
        folder = pico_base(tmp_path / "bare", chat_template=None, seed=1)
        pulled = self.pull(program, folder, "--json").done().json
        assert pulled["template_origin"] == "chatml"
        assert train(program, rows, "--steps", 1, "--json", on="bare").done().json["layer"]

    @pytest.mark.parametrize(
        "template",
        [
            "{{ raise_exception('no such role') }}",
            "{% for message in messages %}",
            "{{ messages[0].nothing.at.all }}",
            "",
        ],
    )
    def test_a_template_that_raises_is_said_so(self, program, tmp_path, rows, template):
        folder = pico_base(tmp_path / "odd", chat_template=template or CHATML, seed=2)
        (folder / "chat_template.jinja").write_text(template)
        result = self.pull(program, folder)
        if result.code == 0:
            train(program, rows, on="odd").refused("template")
            program("chat", "odd", "--once", "hello").refused("template")
        else:
            result.refused("template")

    def test_a_vocabulary_that_does_not_fit_is_refused(self, program, tmp_path):
        folder = pico_base(tmp_path / "small", vocab=300)
        other = pico_base(tmp_path / "big", vocab=384)
        (folder / "tokenizer.json").write_bytes((other / "tokenizer.json").read_bytes())
        self.pull(program, folder).refused("383", "300 rows")

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
    @pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
    def test_a_damaged_folder_is_refused(self, program, tmp_path, name, damage):
        folder = pico_base(tmp_path / "hurt", seed=3)
        path = folder / name
        data = path.read_bytes()
        if damage == "missing":
            path.unlink()
        elif damage == "flipped":
            path.write_bytes(bytes([data[0] ^ 0x80]) + data[1:])
        else:
            path.write_bytes(data[: len(data) // 2] if damage == "cut" else b"")
        self.pull(program, folder).refused()
        assert [b["name"] for b in program("base", "list", "--json").json["bases"]] == ["pico"]

    def test_sources_that_are_none_are_refused(self, program, tmp_path):
        (tmp_path / "empty").mkdir()
        self.pull(program, tmp_path / "empty").refused("empty")
        self.pull(program, tmp_path / "none").refused("none")
        self.pull(program, "ftp:somewhere").refused()
        self.pull(program, tmp_path / "empty", "--as", "sums").refused("sums")

    def test_rm_is_refused_while_a_stack_stands_on_it(self, program):
        program("base", "rm", "pico").refused("sums:v1", "times:v1")
        program("rm", "sums", "times").done()
        program("base", "rm", "pico").done()
        assert program("base", "list", "--json").json == {"bases": []}


def test_an_exam_file_is_checked_like_data(program, tmp_path):
    (tmp_path / "bad.jsonl").write_text("{\n")
    program("exam", "sums", "--exam", tmp_path / "bad.jsonl").refused("bad.jsonl")
    good = write_rows(tmp_path / "good.jsonl", "plus", 5)
    scores = program("exam", "sums", "--exam", good, "--json").done().json["scores"]
    assert scores[-1]["layer"] == "-"
    assert scores[-1]["n"] == 5
