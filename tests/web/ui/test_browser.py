"""The pages in real Chromium, over a real trained store."""

import json
import shutil
import time

import pytest

from lamina.flows import votes
from lamina.flows.hosting import Host
from lamina.store.layout import Store
from lamina.web.app import create_app
from lamina.web.settings import Settings
from tests.books import Books, exam
from tests.pictures import drawn_store
from tests.web.ui.many import many
from tests.web.ui.served import answer, app, served
from tests.web.ui.watched import CONTRAST, SEARCHED, SHAPE, chromium, go, opened

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="Chromium is not installed: apt-get install it"),
]
PAGES = ("stacks", "stack/times", "stack/pico", "compare", "runs", "exams", "lineage", "cost")
THEMES = ("light", "dark")
SIZES = ((1280, 900), (390, 844))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as running:
        # root has no sandbox of its own; the pages are ours
        found = running.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def origin(store):
    with served(app(store)) as address:
        yield address


@pytest.fixture(scope="module")
def still(made):
    """Pages over the store that nobody changes."""
    with served(app(Store.open(made, create=False))) as address:
        yield address


# -- every page ------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", PAGES)
def test_every_page_in_both_themes_and_sizes(browser, still, where):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for theme in THEMES:
        for width, height in SIZES:
            size = {"width": width, "height": height}
            with opened(browser, still, theme=theme, reduced_motion="reduce", **size) as page:
                go(page, still, where)
                page.evaluate(
                    "document.querySelectorAll('details').forEach((d) => { d.open = true; })"
                )
                page.wait_for_timeout(50)
                found = page.evaluate(SHAPE)
                assert found == {"headings": 1, "twice": [], "wide": 0, "pictures": 0, "rows": 0}
                faults = axe.run(page).response["violations"]
                shown = [(f["id"], [n["html"][:150] for n in f["nodes"][:5]]) for f in faults]
                assert shown == [], (theme, width)


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("chosen", [None, *THEMES])
def test_text_can_be_read_in_both_themes(browser, still, theme, chosen):
    """4.5:1 everywhere (WCAG AA), in SVG too, whatever the system and the choice are."""
    with opened(browser, still, theme=theme) as page:
        if chosen:
            page.add_init_script(f"localStorage.setItem('lamina-theme', '{chosen}')")
        for where in PAGES:
            go(page, still, where)
            told = page.evaluate(CONTRAST)
            assert len(told) > 15
            assert told[0][0] >= 4.5, (where, told[:3])


def test_the_theme_is_chosen_and_kept(browser, still):
    colour = "getComputedStyle(document.body).backgroundColor"
    with opened(browser, still, theme="light") as page:
        go(page, still, "stacks")
        light = page.evaluate(colour)
        button = page.locator("#theme-button")
        assert button.inner_text() == "Theme: system"
        button.click()
        assert page.evaluate(colour) == light
        button.click()
        assert button.inner_text() == "Theme: dark"
        dark = page.evaluate(colour)
        assert dark != light
        page.reload()
        assert page.evaluate(colour) == dark
        button.click()
        assert page.evaluate(colour) == light
        assert page.evaluate("localStorage.length") == 0


def test_what_a_stack_cost_is_said_and_drawn_in_the_chosen_theme(browser, still):
    drawn = "(img) => img.complete && img.naturalWidth"
    paper = """async (img) => {
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [8, 8];
      const ink = canvas.getContext('2d');
      ink.drawImage(img, 0, 0, 8, 8);
      return [...ink.getImageData(0, 0, 1, 1).data];
    }"""
    seen = []
    for theme in THEMES:
        with opened(browser, still, theme="light") as page:
            page.add_init_script(f"localStorage.setItem('lamina-theme', '{theme}')")
            go(page, still, "stack/times")
            card = page.get_by_role("region", name="What it cost")
            assert "times:v1 has cost " in card.inner_text()
            picture = card.get_by_role("img")
            assert "times:v1 has cost " in picture.get_attribute("alt")
            assert picture.evaluate(drawn) == 760
            seen.append(picture.evaluate(paper))
            card.get_by_text("What this rests on").click()
            assert "Full fine-tuning" in card.inner_text()
            go(page, still, "stack/pico")
            assert page.get_by_role("region", name="What it cost").count() == 0
    assert seen[0] == [255, 255, 255, 255]
    assert max(seen[1][:3]) < 64


def test_a_page_that_is_not_there_shows_the_stacks_and_a_name_that_is_not_there_says_so(
    browser, still
):
    with opened(browser, still, allowed=("404",)) as page:
        go(page, still, "nothing/at/all")
        assert page.locator("h1").inner_text() == "Stacks"
        page.goto(f"{still}/#/stack/nobody")
        assert "nothing is called 'nobody'" in page.get_by_role("alert").inner_text()


def test_an_empty_store_says_what_to_type(browser, tmp_path):
    with (
        served(app(Store.open(tmp_path / "store"))) as address,
        opened(browser, address) as page,
    ):
        for where in ("stacks", "compare", "runs", "exams", "lineage", "cost"):
            go(page, address, where)
            assert page.locator(".empty code").inner_text().startswith("lamina ")


# -- the keyboard ----------------------------------------------------------------------------------


def focused(page):
    return page.evaluate("document.activeElement.innerText || document.activeElement.id")


def tab_to(page, text, most=60):
    """Press Tab until something with this text has the focus, ring and all."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if text in (focused(page) or ""):
            ring = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert ring != "none" or page.locator(".stack-row:has(a:focus-visible)").count(), text
            return
    raise AssertionError(f"{text} cannot be reached by keyboard")


def test_the_first_key_skips_to_the_content(browser, still):
    with opened(browser, still) as page:
        go(page, still, "stacks")
        page.keyboard.press("Tab")
        assert focused(page) == "Skip to content"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        tab_to(page, "sums", most=6)
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="sums:v1").wait_for()


def test_a_vote_by_keyboard_alone_lands_on_disk(browser, origin, store):
    with opened(browser, origin) as page:
        go(page, origin, "stacks")
        tab_to(page, "Compare")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="Compare", exact=True).wait_for()
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.tagName") == "TEXTAREA":
                break
        page.keyboard.type("what is 1 plus 2?")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="B is better").wait_for()
        page.keyboard.press("Shift+Tab")
        while "B is better" not in focused(page):
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("Enter")
        page.get_by_text("kept", exact=True).wait_for()
        assert page.evaluate("document.activeElement.tagName") == "TEXTAREA"
        page.keyboard.type("and then?")
        page.keyboard.press("Enter")
        page.get_by_role("button", name="A is better").wait_for()
        page.get_by_role("button", name="A is better").click()
        page.get_by_text("Votes: 2").wait_for()
    first, second = votes.votes(store)
    asked = [{"role": "user", "content": "what is 1 plus 2?"}]
    names = (first.stacks.rejected.name, first.stacks.chosen.name)
    assert set(names) <= {"sums:v1", "times:v1", "pico"}
    assert [turn.model_dump() for turn in first.prompt] == asked
    assert (first.rejected[0].content, first.chosen[0].content) == tuple(
        answer(name, asked) for name in names
    )
    # the second turn went on from the better answer, in both columns
    assert [turn.role for turn in second.prompt] == ["user", "assistant", "user"]
    assert second.prompt[1].content == first.chosen[0].content


# -- comparing -------------------------------------------------------------------------------------


def ask(page, text):
    page.get_by_label("Your message").fill(text)
    page.keyboard.press("Enter")


def test_hidden_names_are_shown_after_the_vote(browser, origin, store):
    with opened(browser, origin) as page:
        go(page, origin, "compare/times")
        page.get_by_role("combobox", name="Stack B").fill("sums")
        page.get_by_label("Hide who is who until I vote").check()
        heads = page.locator(".column h2")
        assert heads.all_inner_texts() == ["Stack A", "Stack B"]
        ask(page, "hello")
        page.get_by_role("button", name="A is better").click()
        page.get_by_text("Votes: 1").wait_for()
        assert sorted(heads.all_inner_texts()) == ["sums", "times"]
        (vote,) = votes.votes(store)
        assert vote.stacks.chosen.name.startswith(heads.all_inner_texts()[0])
        assert vote.stacks.chosen.name in vote.chosen[0].content


def test_conversations_that_parted_get_no_vote(browser, origin, store):
    with opened(browser, origin) as page:
        go(page, origin, "compare")
        ask(page, "one")
        page.get_by_role("button", name="Neither").click()
        ask(page, "two")
        page.get_by_text("the conversations have parted").wait_for()
        page.get_by_role("button", name="New conversation").click()
        ask(page, "three")
        page.get_by_role("button", name="A is better").wait_for()
    assert votes.votes(store) == []


def test_stop_ends_both_answers_and_offers_no_vote(browser, store):
    long = " ".join(f"w{n}" for n in range(3000))
    with (
        served(app(store, reply=lambda model, messages: long)) as address,
        opened(browser, address) as page,
    ):
        go(page, address, "compare")
        ask(page, "go on")
        page.locator(".column", has_text="w20").first.wait_for()
        page.keyboard.press("Escape")
        page.get_by_text("No vote: an answer is not whole.").wait_for()
        assert page.get_by_text("Stopped.").count() == 2
        assert page.get_by_role("button", name="Stop").is_hidden()
        length = len(page.locator(".log").first.inner_text())
        page.wait_for_timeout(300)
        assert len(page.locator(".log").first.inner_text()) == length


def test_an_answer_that_fails_says_why(browser, origin):
    with opened(browser, origin, allowed=("500",)) as page:
        go(page, origin, "compare")
        page.get_by_role("combobox", name="Stack B").fill("broken")
        page.get_by_role("combobox", name="Stack B").press("Tab")
        ask(page, "hello")
        page.get_by_text("this stack cannot be loaded").wait_for()
        page.get_by_text("No vote: an answer is not whole.").wait_for()


# -- keys ------------------------------------------------------------------------------------------


def test_a_key_is_asked_for_and_kept_in_this_tab_only(browser, store):
    with served(app(store, key="s3cret")) as address:
        with opened(browser, address, allowed=("401",)) as page:
            page.goto(address)
            page.get_by_role("dialog").wait_for()
            page.get_by_label("Key", exact=True).fill("s3cret")
            page.keyboard.press("Enter")
            page.get_by_role("link", name="times").wait_for()
            assert page.locator("#key-button").inner_text() == "API key set"
            assert page.evaluate("JSON.stringify(localStorage)") == "{}"
            assert page.context.cookies() == []
            go(page, address, "compare")
            ask(page, "hello")
            page.get_by_role("button", name="A is better").wait_for()
            page.locator("#key-button").click()
            page.get_by_role("button", name="Forget").click()
            assert page.evaluate("sessionStorage.length") == 0
        with opened(browser, address, allowed=("401",)) as page:
            page.goto(address)
            page.get_by_role("dialog").wait_for()


# -- hostile text ----------------------------------------------------------------------------------

EVIL = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def test_hostile_names_and_answers_are_only_text(browser, tmp_path):
    books = Books(tmp_path / "store")
    carries = (exam(f"{EVIL}/exact").model_copy(update={"max_new_tokens": 1}),)
    layer = books.layer("evil", exams=carries, author=EVIL, licence=f'"{EVIL}')
    books.score(books.name("fine", layer), f"{EVIL}/exact", (1, 1, EVIL), (0, 1, EVIL))
    books.name("fine", layer, books.layer("more", [layer], author=f"javascript:{EVIL}"))
    with (
        served(app(books.store, reply=lambda model, messages: f"{EVIL} {model}")) as address,
        opened(browser, address) as page,
    ):
        shown = []
        for where in ("stacks", "stack/fine", "exams/fine", "lineage", "cost"):
            go(page, address, where)
            page.wait_for_timeout(100)
            shown.append(page.locator("#view").inner_text())
            assert page.locator("#view img[src=x], #view script").count() == 0, where
        assert all("<img src=x" in text for text in shown[1:3]), shown
        go(page, address, "compare/fine")
        ask(page, EVIL)
        page.get_by_role("button", name="A is better").click()
        page.get_by_text("Votes: 1").wait_for()
        assert page.locator(".turn").first.inner_text() == EVIL
        assert page.locator("#view img[src=x], #view script").count() == 0
        assert page.evaluate("window.hacked") is None
        for link in page.locator("a").all():
            assert link.get_attribute("href").startswith("#"), link


# -- runs ------------------------------------------------------------------------------------------


def test_a_run_is_seen_while_it_trains(browser, origin, store):
    source = next(store.runs_dir.iterdir())
    run = store.runs_dir / "20990101-000000-live-0000"
    shutil.copytree(source, run)
    (run / "result.json").unlink()
    spec = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(spec | {"id": run.name, "name": "live"}))
    (run / "events.jsonl").write_text("")

    def say(step, loss):
        event = {"event": "step", "time": time.time(), "step": step, "steps": 100, "loss": loss}
        event |= {"tokens": 1000, "tokens_per_second": 500.0, "elapsed": 6.0 * step}
        with (run / "events.jsonl").open("a") as handle:
            handle.write(json.dumps(event) + "\n")

    for number in range(1, 11):
        say(number, 3.0 - number / 10)
    with opened(browser, origin) as page:
        go(page, origin, "runs")
        assert "training" in page.locator(".run-row", has_text="live").inner_text()
        page.get_by_role("link", name="live").click()
        page.get_by_text("10 / 100").wait_for()
        left = page.locator(".facts div", has_text="Left").locator("dd")
        assert left.inner_text() == "9 min"  # 90 steps of 6 seconds
        assert page.get_by_text("500 tokens/s").count() == 1
        for number in range(11, 51):
            say(number, 2.0)
        page.get_by_text("50 / 100").wait_for()
        assert left.inner_text() == "5 min"
        page.get_by_text("As a table").first.click()
        table = page.get_by_role("table").first
        table.get_by_role("row").last.wait_for()
        assert table.get_by_role("row").count() == 41  # 50 points as 40, and the head
        with (run / "events.jsonl").open("a") as handle:
            handle.write(
                json.dumps({"event": "interrupted", "time": time.time(), "step": 50}) + "\n"
            )
        page.get_by_text(f"lamina train --resume {run.name}").wait_for()


# -- many ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    return many(tmp_path_factory.mktemp("many") / "store", 1000)


def test_a_thousand_stacks_can_be_searched(browser, crowd):
    with served(app(crowd)) as address, opened(browser, address) as page:
        go(page, address, "stacks")
        assert "1,000 stacks" in page.locator(".head").inner_text()
        rows = page.locator(".stack-row")
        assert rows.count() == 60
        page.get_by_role("button", name="Show 60 more").click()
        assert rows.count() == 120
        page.get_by_label("Search").fill("layer-77")
        page.get_by_role("button", name="Show").wait_for(state="hidden")
        assert rows.count() == 11  # layer-77, layer-770 …
        took = page.evaluate(SEARCHED)
        assert took < 1000, took
        for where, most in (("lineage", 60), ("cost", 100), ("compare", 2)):
            began = time.monotonic()
            go(page, address, where)
            assert time.monotonic() - began < 10, where
            shown = page.locator(".lineage-list li, tbody tr, .column").count()
            assert 0 < shown <= most, where


# -- drawing ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def studio(tmp_path_factory):
    """The server itself over stacks that draw, as `lamina serve` makes it."""
    store = drawn_store(tmp_path_factory.mktemp("studio") / "store")
    host = Host(store, lambda *_: pytest.fail("no engine is needed to draw"))
    with served(create_app(host, Settings(keys_file=None, log=lambda record: None))) as address:
        yield address


def drawn(page):
    """(what the caption says, width of the image as it came) of every image on the page."""
    page.locator(".drawn figure").first.wait_for()
    assert page.locator(".drawn").get_attribute("aria-busy") is None
    sizes = page.locator(".drawn img").evaluate_all("all => all.map((i) => i.naturalWidth)")
    return list(zip(page.locator(".drawn figcaption").all_inner_texts(), sizes, strict=True))


def test_a_prompt_becomes_images_with_their_seeds(browser, studio):
    with opened(browser, studio) as page:
        go(page, studio, "stacks")
        page.get_by_role("link", name="Draw", exact=True).click()
        page.get_by_role("heading", name="Draw").wait_for()
        stack = page.get_by_role("combobox", name="Stack")
        assert stack.input_value() in ("dusk", "night", "canvas")
        stack.fill("night")
        page.get_by_label("What to draw").fill("a red circle")
        page.get_by_label("Images").fill("3")
        page.get_by_label("Steps").fill("2")
        page.get_by_label("Seed").fill("7")
        with page.expect_request("**/v1/images/generations") as asked:
            page.get_by_role("button", name="Draw").click()
        body = {"model": "night", "prompt": "a red circle", "n": 3, "steps": 2, "seed": 7}
        assert asked.value.post_data_json == body
        first = drawn(page)
        assert first[0] == ("seed 7", 16)
        assert len({text for text, _ in first}) == 3
        assert page.locator(".drawn img").first.get_attribute("alt") == "a red circle, by night"
        source = page.locator(".drawn img").first.get_attribute("src")
        page.get_by_label("Images").fill("1")
        page.get_by_role("button", name="Draw").click()
        page.locator(".drawn figure").nth(1).wait_for(state="detached")
        assert drawn(page) == first[:1]  # the same seed, the same image
        assert page.locator(".drawn img").get_attribute("src") == source


def test_what_draws_is_not_offered_for_a_talk(browser, studio):
    with opened(browser, studio) as page:
        go(page, studio, "compare")
        assert page.locator(".empty code").inner_text() == "lamina quickstart"


def test_what_the_server_says_against_drawing_is_shown(browser, studio):
    with opened(browser, studio, allowed=("400", "404")) as page:
        go(page, studio, "draw/night")
        assert page.get_by_role("combobox", name="Stack").input_value() == "night"
        page.get_by_label("What to draw").fill("a" * 5000)
        page.get_by_role("button", name="Draw").click()
        assert "prompt" in page.get_by_role("alert").inner_text()
        page.get_by_role("combobox", name="Stack").fill("nobody")
        page.get_by_label("What to draw").fill("a red circle")
        page.get_by_role("button", name="Draw").click()
        page.get_by_text("nothing is called 'nobody'").wait_for()
        assert page.get_by_role("button", name="Draw").is_enabled()


def test_a_server_that_is_gone_is_said(browser, studio):
    with opened(browser, studio, allowed=("ERR_FAILED",)) as page:
        go(page, studio, "draw")
        page.get_by_label("What to draw").fill("a red circle")
        page.route("**/v1/images/generations", lambda route: route.abort())
        page.get_by_role("button", name="Draw").click()
        assert "does not answer" in page.get_by_role("alert").inner_text()


def test_where_nothing_draws_the_page_says_how_to_get_it(browser, still, tmp_path):
    with served(app(Store.open(tmp_path / "store"))) as empty:
        for address in (empty, still):  # a store without stacks, and one whose stacks talk
            with opened(browser, address) as page:
                go(page, address, "draw")
                shown = page.locator(".empty code").inner_text()
                assert shown.startswith("lamina base build tiny-diffusion")


@pytest.mark.parametrize("theme", THEMES)
def test_the_page_of_images_can_be_used_by_everybody(browser, studio, theme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    for width, height in SIZES:
        size = {"width": width, "height": height}
        with opened(browser, studio, theme=theme, reduced_motion="reduce", **size) as page:
            go(page, studio, "draw/night")
            page.get_by_label("What to draw").fill("a red circle")
            page.get_by_label("Steps").fill("1")
            page.keyboard.press("Enter")
            drawn(page)
            found = page.evaluate(SHAPE)
            assert found == {"headings": 1, "twice": [], "wide": 0, "pictures": 0, "rows": 0}
            faults = axe.run(page).response["violations"]
            assert [(f["id"], [n["html"][:150] for n in f["nodes"][:5]]) for f in faults] == []
            assert page.evaluate(CONTRAST)[0][0] >= 4.5
