"""The cache's blocks: nobody writes into another's, nothing is lost, no stack finds another's."""

import random

from lamina.serve.batch import BLOCK
from lamina.serve.blocks import Blocks


def fill(cache, stack, tokens):
    """Read `tokens` as an answer does; its blocks, and how many were found."""
    found = cache.match(stack, tokens)
    blocks, node = list(found.blocks), found.node
    taken = cache.take(-(-len(tokens) // BLOCK) - len(blocks))
    if taken is None:
        cache.release(blocks)
        return None, 0
    blocks += taken
    for i in range(len(found.blocks), len(tokens) // BLOCK):
        node = cache.remember(stack, node, tokens[i * BLOCK : (i + 1) * BLOCK], blocks[i])
    return blocks, len(found.blocks)


def test_a_prefix_is_found_again_by_its_own_stack_only():
    cache, tokens = Blocks(16), list(range(3 * BLOCK + 5))
    blocks, found = fill(cache, "a", tokens)
    assert found == 0
    cache.release(blocks)
    again, found = fill(cache, "a", tokens)
    assert found == 3
    assert again[:3] == blocks[:3]
    other, found = fill(cache, "b", tokens)
    assert found == 0
    assert not set(other) & set(again)


def test_the_same_tokens_behind_another_beginning_are_not_found():
    cache = Blocks(16)
    fill(cache, "a", [1] * BLOCK + [2] * BLOCK + [3])
    assert cache.match("a", [4] * BLOCK + [2] * BLOCK + [3]).blocks == []
    assert cache.match("a", [2] * BLOCK + [3]).blocks == []


def test_one_token_is_always_left_to_compute():
    cache = Blocks(16)
    fill(cache, "a", [1] * (2 * BLOCK))
    assert len(cache.match("a", [1] * (2 * BLOCK)).blocks) == 1


def test_a_block_in_use_is_not_given_up():
    cache = Blocks(4)
    blocks, _ = fill(cache, "a", [1] * (3 * BLOCK))
    assert cache.take(2) is None
    (last,) = cache.take(1)
    assert last not in blocks
    cache.release(blocks)
    assert len(cache.take(3)) == 3
    assert cache.available == 0


def test_the_longest_unused_is_forgotten_first_and_ends_before_beginnings():
    cache = Blocks(4)
    for stack in ("a", "b"):
        blocks, _ = fill(cache, stack, [1] * (2 * BLOCK))
        cache.release(blocks)
    cache.take(1)
    assert len(cache.match("b", [1] * (3 * BLOCK)).blocks) == 2
    assert len(cache.match("a", [1] * (3 * BLOCK)).blocks) == 1


def test_any_course_of_events_keeps_the_books_right():
    chance = random.Random(1)
    cache, reading, content = Blocks(24), [], {}
    for _ in range(3000):
        if reading and (chance.random() < 0.5 or len(reading) > 6):
            cache.release(reading.pop(chance.randrange(len(reading)))[0])
            continue
        stack = chance.choice("ab")
        tokens = [chance.randrange(2) for _ in range(chance.choice([1, 2, 3]))]
        tokens = [t for t in tokens for _ in range(BLOCK)] + [9] * chance.randrange(1, 40)
        blocks, found = fill(cache, stack, tokens)
        if blocks is None:
            continue
        for i in range(found):  # what is found was written by the same stack behind the same tokens
            assert content[blocks[i]] == (stack, tokens[: (i + 1) * BLOCK])
        for i in range(found, len(blocks)):
            assert all(blocks[i] not in others for others, _ in reading)
            content[blocks[i]] = (stack, tokens[: (i + 1) * BLOCK])
        reading.append((blocks, stack))
        held = {block for blocks, _ in reading for block in blocks}
        assert cache.available == 24 - len(held)
    for blocks, _ in reading:
        cache.release(blocks)
    assert cache.available == 24
