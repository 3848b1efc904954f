"""Names: given, moved back, removed; and the space that they held."""


def test_tag_gives_versions(program):
    first = program("tag", "sums", "copy", "--json").done().json
    assert first["name"] == "copy:v1"
    assert program("tag", "sums", "copy", "--json").done().json == first  # nothing to move
    assert program("tag", "times", "copy", "--accept-regression", "x", "--json").done().json[
        "name"
    ] == "copy:v2"  # fmt: skip
    back = program("tag", "copy:v1", "copy", "--accept-regression", "x", "--json").done().json
    assert back == {"name": "copy:v3", "stack": first["stack"]}
    assert "copy is" not in program("tag", "sums", "copy").done().err


def test_names_that_tag_cannot_give(program):
    program("tag", "sums", "pico").refused("pico")
    program("tag", "sums", "copy:v7").refused("copy:v7")
    program("tag", "nobody", "copy").refused("nobody")


def test_rm_takes_all_that_were_asked_or_none(program):
    before = program("list", "--json").json
    program("rm", "sums", "nobody", "pico", "times:v9").refused(
        "nobody", "base rm pico", "times:v9", "nothing was removed"
    )
    assert program("list", "--json").json == before
    assert program("rm", "sums", "times:v1", "--json").done().json == {
        "removed": ["sums", "times:v1"]
    }
    assert [s["name"] for s in program("list", "--json").json["stacks"]] == ["times"]


def test_gc_frees_what_nothing_reaches(program):
    program("gc", "--grace", 0).done()
    assert program("gc", "--grace", 0, "--dry-run", "--json").done().json["bytes"] == 0
    program("rm", "times").done()
    planned = program("gc", "--grace", 0, "--dry-run", "--json").done().json
    assert planned["bytes"] > 0
    assert "stay (--grace)" in program("gc").done().out  # younger than an hour
    removed = program("gc", "--grace", 0, "--json").done().json
    assert removed["blobs"] == planned["blobs"]
    program("verify").done()
    program("chat", "sums", "--once", "x", "--max-tokens", 1).done()
    program("show", "times").refused("times")


def test_removing_a_layer_that_a_name_holds_is_refused(program):
    layer = program("show", "sums", "--json").json["layers"][0]["layer"]
    program("rm", layer).refused("a name holds it")
    program("rm", "@012345678901").refused("nothing has the digest")
