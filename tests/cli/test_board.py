"""Lines of many pieces of work, in a terminal and elsewhere."""

import os
import pty
import subprocess
import sys

WORK = """
from lamina.cli.board import shown
with shown() as board:
    for percent in (10, 20):
        for name in ("one", "two"):
            text = f"{percent}% done" + "\\x1b[31m"
            board.event({"event": "job", "name": name, "text": text, "done": False})
    board.event({"event": "job", "name": "one", "text": "landed\\nand more", "done": True})
    board.say("a sentence")
    board.event({"event": "job", "name": "two", "text": "landed", "done": True})
"""


def test_elsewhere_only_what_is_over_is_told():
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr == "one: landed\na sentence\ntwo: landed\n"


def test_in_a_terminal_what_runs_is_rewritten_and_what_is_over_stays():
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", WORK], stderr=theirs, stdout=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    said = b""
    try:
        while piece := os.read(ours, 4096):
            said += piece
    except OSError:  # how a terminal says that nobody writes to it any more
        pass
    assert process.wait() == 0
    text = said.decode()
    assert "two: 20% done" in text
    assert "\x1b[31m" not in text  # what others say does not drive the terminal
    assert text.count("one: landed") == text.count("two: landed") == 1
    assert text.index("one: landed") < text.index("a sentence") < text.index("two: landed")
    after = text[text.index("two: landed") :]
    assert "%" not in after
