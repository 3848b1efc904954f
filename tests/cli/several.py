"""A child that runs several commands in one process, which loads torch only once.

`python -m tests.cli.several '[["list"], ["show", "sums"]]'` prints a list of [code, out, err].
"""

import contextlib
import io
import json
import sys

from lamina.cli.app import main


def run(arguments):
    out, err = io.StringIO(), io.StringIO()
    code = None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as exit_:
            code = exit_.code
    return [code or 0, out.getvalue(), err.getvalue()]


if __name__ == "__main__":
    print(json.dumps([run(arguments) for arguments in json.loads(sys.argv[1])]))
