"""The quickstart as a user runs it: `lamina quickstart --json` on an empty store.

Adds to its report what the issue of a first impression asks for: is each layer significantly
better on its own exam, is the first layer's exam kept, and what did the process need at its peak.
"""

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

from benchmarks.common import emit, home, parser


def main() -> None:
    """Run it and report."""
    given = parser(__doc__).parse_args()
    with home(given.home) as directory:
        result = subprocess.run(
            [str(Path(sys.executable).parent / "lamina"), "quickstart", "--json"],
            env=os.environ | {"LAMINA_HOME": str(directory)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    report = json.loads(result.stdout)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    emit("quickstart", report | {"peak_gb": round(peak / 1e9, 2)}, keep=given.keep)


if __name__ == "__main__":
    main()
