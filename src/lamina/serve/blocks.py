"""Blocks of the cache of keys and values: who reads which, and which prefixes are remembered.

A full block is remembered under (what came before it, its tokens), rooted at the stack's digest:
exact keys in a tree, no hashes that could collide. So a prefix is found only by the stack that
wrote it. A block that nobody reads stays remembered until its room is needed, the longest unused
first.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from lamina.serve.batch import BLOCK


class _Node(NamedTuple):
    """A full block's place in the tree: the node before it (0: the root) under its stack."""

    stack: str
    before: int
    tokens: tuple[int, ...]


class Match(NamedTuple):
    """The longest remembered beginning of a prompt."""

    blocks: list[int]
    """Taken for the caller: each counts it as a reader."""
    node: int
    """Where the tree goes on."""


class Blocks:
    """All blocks of one cache. Not for several threads."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = list(range(count - 1, -1, -1))
        self._readers = [0] * count
        self._node_of: dict[_Node, tuple[int, int]] = {}  # -> (node's number, block)
        self._known: dict[int, _Node] = {}  # block -> its key
        self._unread: OrderedDict[int, None] = OrderedDict()  # remembered, oldest first
        self._next_node = 1

    @property
    def available(self) -> int:
        """Blocks that can be taken now, remembered ones included."""
        return len(self._free) + len(self._unread)

    @property
    def free(self) -> int:
        """Blocks that hold nothing."""
        return len(self._free)

    def match(self, stack: str, tokens: Sequence[int]) -> Match:
        """The longest remembered beginning of `tokens`, at least one token short of them all:
        somebody has to compute what comes next."""
        blocks: list[int] = []
        node = 0
        for start in range(0, (len(tokens) - 1) // BLOCK * BLOCK, BLOCK):
            found = self._node_of.get(_Node(stack, node, tuple(tokens[start : start + BLOCK])))
            if found is None:
                break
            node, block = found
            blocks.append(block)
        for block in blocks:
            self._readers[block] += 1
            self._unread.pop(block, None)
        return Match(blocks, node)

    def take(self, count: int) -> list[int] | None:
        """So many blocks for one reader, or None where there are not as many."""
        if count > self.available:
            return None
        taken = []
        for _ in range(count):
            if not self._free:
                self._forget(next(iter(self._unread)))
            block = self._free.pop()
            self._readers[block] = 1
            taken.append(block)
        return taken

    def remember(self, stack: str, before: int, tokens: Sequence[int], block: int) -> int:
        """A block has become full; the tree's node for it. Where the same tokens are remembered
        already, that block stays the remembered one."""
        key = _Node(stack, before, tuple(tokens))
        found = self._node_of.get(key)
        if found is not None:
            return found[0]
        node, self._next_node = self._next_node, self._next_node + 1
        self._node_of[key] = (node, block)
        self._known[block] = key
        return node

    def release(self, blocks: Sequence[int]) -> None:
        """A reader has done with them. Later blocks of a prefix are forgotten before earlier."""
        for block in reversed(blocks):
            self._readers[block] -= 1
            assert self._readers[block] >= 0, "a block released twice"
            if self._readers[block]:
                continue
            if block in self._known:
                self._unread[block] = None
            else:
                self._free.append(block)

    def _forget(self, block: int) -> None:
        del self._unread[block]
        del self._node_of[self._known.pop(block)]
        self._free.append(block)
