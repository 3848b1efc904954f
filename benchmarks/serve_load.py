"""Hundreds of streaming clients on one server for minutes: is anything lost, crossed, or kept?

`lamina serve` with 32 stacks and `--clients` users of the official client. Each asks a stack drawn
at random one of a few questions, again and again; what every stack says to every question was
asked before, one at a time. As the engine's numbers do not depend on the batch, each answer must
be the same to the character. Only questions that the stack answers as no other pair is answered
are asked under load (`pairs`), so that no exchange goes unseen. The cache is small
(`--cache-tokens`), so that blocks run out and answers give way to others and are read again. One
request in twenty is left before it ends.

- `answers`, `left`: requests that came to their end; that their clients left.
- `lost`: those with an error or without an end. `crossed`: those whose text is another one;
  `crossed_stacks`: of these, another stack's. `at_once`: most requests in the engine; more than
  clients would mean that some were kept.
- `rss_growth`: the server's resident memory, the median of the last fifth of the time over the
  median of the second, less 1.
- `drain`: after SIGTERM, while all clients stream: how many answers were finished, how many clients
  were told that the server ends, how many heard neither; seconds to the exit, which must be with 0.
"""

import argparse
import asyncio
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.common import emit, home, parser, say
from benchmarks.served import (
    Answered,
    Server,
    ask,
    ask_all,
    metrics,
    percentile,
    prepare,
    questions,
    server,
)

MOST = 48
"""Tokens of an answer."""
EVERY = 10.0
"""Seconds between looks at the server's memory."""
QUICK = {"minutes": 0.1, "clients": 12, "stacks": 4, "drain_seconds": 1.0, "cache_tokens": 1024}
SETTLED = 1.0
"""Seconds between the last request and SIGTERM: a request that was not read yet is refused by TCP,
whoever serves."""
SHUTTING = "shut down"
"""What a server that ends says, in an error's text."""

Pair = tuple[str, str]
"""A stack and a question."""


def main() -> None:
    """Prepare, load, report."""
    arguments = parser(__doc__)
    arguments.add_argument("--minutes", type=float, default=10.0)
    arguments.add_argument("--clients", type=int, default=200)
    arguments.add_argument("--stacks", type=int, default=32)
    arguments.add_argument("--questions", type=int, default=6)
    arguments.add_argument("--rank", type=int, default=16)
    arguments.add_argument("--leave", type=float, default=0.05, help="share of requests left")
    arguments.add_argument("--cache-tokens", type=int, default=16384)
    arguments.add_argument("--drain-seconds", type=float, default=30.0)
    arguments.add_argument("--quick", action="store_true", help="seconds, few clients")
    given = arguments.parse_args()
    if given.quick:
        vars(given).update(QUICK)
    with home(given.home) as directory:
        prepare(directory, "served", given.stacks, given.rank)
        emit("serve_load", measured(directory, given), keep=given.keep)


def measured(directory: Path, given: argparse.Namespace) -> dict[str, Any]:
    """The row."""
    pairs = [
        (f"served{i}", question)
        for i in range(given.stacks)
        for question in questions(given.questions)
    ]
    options = ["--cache-tokens", given.cache_tokens, "--drain-seconds", given.drain_seconds]
    with server(directory, *options) as url:
        expected = asyncio.run(ask_all(url, pairs, MOST, 1))
        faults = [answer.fault for answer in expected if answer.fault]
        if faults:
            raise RuntimeError(faults[0])
        times = Counter(answer.text for answer in expected)
        told = zip(pairs, expected, strict=True)
        texts = {pair: answer.text for pair, answer in told if times[answer.text] == 1}
        stacks = {stack for stack, _ in texts}
        if not texts:
            raise RuntimeError("all stacks say the same: nothing could be seen")
        say(f"{len(texts)} of {len(pairs)} answers, by {len(stacks)} stacks, are nobody else's")
        load = Load(url, texts, given)
        asyncio.run(load.run())
    return load.row() | {"minutes": given.minutes, "stacks": len(stacks), "pairs": len(texts)}


@dataclass
class Load:
    """The clients, and what became of what they asked."""

    url: str
    texts: dict[Pair, str]
    given: argparse.Namespace
    counts: Counter[str] = field(default_factory=Counter)
    draining: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    answered: list[Answered] = field(default_factory=list)
    resident: list[int] = field(default_factory=list)
    at_once: int = 0
    ending: bool = False
    seconds: float = 0.0
    drain_seconds: float = 0.0
    _usual: float = 1.0
    """Seconds that the last answer took."""

    async def run(self) -> None:
        """Load the server for the minutes, then end it under the load."""
        from openai import AsyncOpenAI

        async with AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=600, max_retries=0
        ) as client:
            began = time.perf_counter()
            clients = [
                asyncio.create_task(self._client(client, random.Random(number)))
                for number in range(self.given.clients)
            ]
            end = began + 60 * self.given.minutes
            while (left := end - time.perf_counter()) > 0:
                await asyncio.sleep(min(EVERY, 6 * self.given.minutes, left))
                await asyncio.to_thread(self._look)
            self.ending = True
            self.seconds = time.perf_counter() - began
            await asyncio.sleep(SETTLED)
            signalled = time.perf_counter()
            Server.process.terminate()
            await asyncio.to_thread(Server.process.wait, 120)
            self.drain_seconds = time.perf_counter() - signalled
            await asyncio.gather(*clients)

    async def _client(self, client: Any, draws: random.Random) -> None:
        pairs = list(self.texts)
        while not self.ending:
            pair = draws.choice(pairs)
            patience = draws.random() if draws.random() < self.given.leave else None
            try:
                async with asyncio.timeout(None if patience is None else patience * self._usual):
                    answer = await ask(client, *pair, MOST)
            except TimeoutError:  # its connection is closed now
                self.counts["left"] += 1
                continue
            self._judge(pair, answer)

    def _judge(self, pair: Pair, answer: Answered) -> None:
        if answer.fault or not answer.tokens:
            told = self.ending and SHUTTING in answer.fault
            kind = "told" if told else "lost"
            if not told:
                self.faults.append(answer.fault or "no end")
                say(f"lost: {self.faults[-1][:300]}")
        elif answer.text == self.texts[pair]:
            kind = "answers"
        else:
            kind = "crossed"
            of_another = answer.text in {
                text for other, text in self.texts.items() if other[0] != pair[0]
            }
            self.counts["crossed_stacks"] += of_another
            say(f"crossed: {pair}\n{answer.text!r}\nand not\n{self.texts[pair]!r}")
        (self.draining if self.ending else self.counts)[kind] += 1
        if kind == "answers" and answer.times:
            self._usual = answer.times[-1] - answer.began
            self.answered.append(answer)

    def _look(self) -> None:
        self.resident.append(Server.resident())
        found = metrics(self.url)
        inside = int(found["lamina_engine_running"] + found["lamina_engine_waiting"])
        self.at_once = max(self.at_once, inside)
        said = f"{self.resident[-1] / 1e6:.0f} MB, {inside} in the engine"
        say(f"{len(self.resident)}: {dict(self.counts)}, {said}")

    def row(self) -> dict[str, Any]:
        """What was found."""
        firsts = [answer.first for answer in self.answered]
        gaps = [gap for answer in self.answered for gap in answer.gaps]
        tokens = sum(answer.tokens for answer in self.answered)
        fifth = max(1, len(self.resident) // 5)
        before, after = median(self.resident[fifth : 2 * fifth]), median(self.resident[-fifth:])
        return {
            "clients": self.given.clients,
            "answers": self.counts["answers"],
            "left": self.counts["left"],
            "lost": self.counts["lost"] + self.draining["lost"],
            "crossed": self.counts["crossed"] + self.draining["crossed"],
            "crossed_stacks": self.counts["crossed_stacks"],
            "faults": sorted(set(self.faults))[:5],
            "at_once": self.at_once,
            "rss_growth": round(after / before - 1, 4),
            "rss_mb": [round(size / 1e6) for size in self.resident],
            "first_s": {f"p{p}": round(percentile(firsts, p / 100), 3) for p in (50, 95)},
            "gap_s": {f"p{p}": round(percentile(gaps, p / 100), 3) for p in (50, 95)},
            "tokens_s": round(tokens / self.seconds, 1),
            "drain": {
                "finished": self.draining["answers"],
                "told": self.draining["told"],
                "lost": self.draining["lost"],
                "seconds": round(self.drain_seconds, 1),
                "most_s": self.given.drain_seconds,
            },
            "cache_tokens": self.given.cache_tokens,
            "leave": self.given.leave,
            "new": MOST,
        }


if __name__ == "__main__":
    main()
