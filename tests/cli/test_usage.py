"""Usage: every misspelling is refused, by name, with what was probably meant."""

import json

import pytest

from lamina.core.version import __version__


def test_version_and_help(empty):
    assert empty("--version").done().out == f"lamina {__version__}\n"
    for words in ((), ("train",), ("base", "pull")):
        assert "Usage: lamina" in empty(*words, "--help").done().out
        assert empty(*words, "-h").done().out == empty(*words, "--help").done().out


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["trian"], "train"),
        (["train", "--rnak", "3"], "--rank"),
        (["list", "--jsn"], "--json"),
        (["base", "pul", "x"], "pull"),
        (["exam", "x", "--agianst", "y"], "--against"),
        (["chat", "x", "--onc", "hello"], "--once"),
    ],
)
def test_a_misspelt_command_or_option_is_refused_with_the_nearest(empty, typed, meant):
    empty(*typed).refused(meant)


@pytest.mark.parametrize(
    "typed",
    [
        ["train", "--rank", "many"],
        ["train", "--data"],
        ["chat", "x", "--temperature", "-1"],
        ["export", "x", "there"],
        ["list", "surplus"],
        ["log", "a", "b"],
        ["diff", "only-one"],
        ["gc", "--grace", "-3"],
    ],
)
def test_bad_values_are_bad_usage(empty, typed):
    empty(*typed).refused("Error: ")


def test_train_names_every_missing_option(empty):
    empty("train", "--rank", "2").refused("--data, --on, --as", "lamina train --help")


@pytest.mark.parametrize(
    "text",
    ["Sums", "a b", "../x", "sums:", "@xyz", "@abc", "-", "é", "a" * 101, "sums:v1:v2", ""],
)
def test_a_name_that_breaks_the_grammar_is_refused(shared, text):
    shared("show", "--", text).refused()


def test_an_unknown_name_gets_the_near_ones(shared):
    shared("show", "summs").refused("summs")
    shared("chat", "tims", "--once", "x").refused("sums, times")
    shared("log", "summs").refused("summs")
    shared("base", "show", "pco").refused("pico")
    shared("show", "sums:v9").refused("it has: ")
    shared("show", "@012345678901").refused("nothing has the digest")


def test_chat_json_needs_a_question(shared):
    shared("chat", "sums", "--json").refused("--once")


class TestRecipeFile:
    def train(self, program, path, *options):
        return program("train", "--on", "pico", "--data", "x.jsonl", "--as", "y",
                       "--recipe", path, *options)  # fmt: skip

    def test_a_misspelt_key_names_the_nearest(self, empty, tmp_path):
        path = tmp_path / "recipe.toml"
        path.write_text('rnak = 8\nscaling = "rs-lora"\nlr = 7\n')
        self.train(empty, path).refused("rnak", "'rank'", "rslora", "lr: ", str(path))

    def test_a_json_recipe_is_checked_alike(self, empty, tmp_path):
        path = tmp_path / "recipe.json"
        path.write_text(json.dumps({"epoch": 1}))
        self.train(empty, path).refused("epoch", "'epochs'")

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("missing.toml", None),
            ("broken.toml", b"rank = = 3"),
            ("table.toml", b"[recipe]\nrank = 3"),
            ("list.json", b"[1, 2]"),
            ("deep.json", b"[" * 100_000),
            ("latin.toml", b'scaling = "\xe9"'),
            ("empty.json", b""),
            ("folder.toml", "folder"),
        ],
    )
    def test_a_file_that_is_no_recipe_is_refused(self, empty, tmp_path, name, content):
        path = tmp_path / name
        if content == "folder":
            path.mkdir()
        elif content is not None:
            path.write_bytes(content)
        self.train(empty, path).refused(str(path))

    def test_options_are_checked_with_the_file(self, empty, tmp_path):
        path = tmp_path / "recipe.toml"
        path.write_text("rank = 8\n")
        self.train(empty, path, "--lr", "7").refused("lr: ")


class TestEnvironment:
    def test_lamina_home_moves_the_store(self, empty):
        empty("list").done()
        assert (empty.home / "oci-layout").is_file()

    def test_a_folder_with_other_things_is_no_store(self, empty):
        empty.home.mkdir()
        (empty.home / "letter.txt").write_text("dear")
        empty("list").refused("letter.txt")
        assert [p.name for p in empty.home.iterdir()] == ["letter.txt"]

    def test_a_file_is_no_store(self, empty):
        empty.home.write_text("x")
        empty("list").refused(str(empty.home))

    def test_bytes_that_are_no_text_are_refused(self, empty):
        result = empty.spawn("show", b"\xff\xfe".decode("utf-8", "surrogateescape"))
        result.refused("arguments must be UTF-8")

    def test_a_bug_keeps_its_traceback_and_asks_for_a_report(self, empty, monkeypatch):
        def broken(_store):
            raise ZeroDivisionError("on purpose")

        monkeypatch.setattr("lamina.flows.inventory.inventory", broken)
        result = empty("list")
        assert result.code == 70
        assert "ZeroDivisionError: on purpose" in result.err
        assert "please report it" in result.err

    def test_what_the_system_refuses_is_no_traceback(self, empty, monkeypatch):
        def refused(_store):
            raise PermissionError(13, "Permission denied", "/some/file")

        monkeypatch.setattr("lamina.flows.inventory.inventory", refused)
        empty("list").refused("Permission denied: /some/file")
