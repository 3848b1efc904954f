"""Streaming gives the same text as decoding at once, in whole characters, cut at stop strings."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lamina.tokens.stream import StreamDecoder
from tests.pico import pico_base


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    directory = pico_base(tmp_path_factory.mktemp("pico") / "llama")
    return PreTrainedTokenizerFast.from_pretrained(directory)


def stream(tokenizer, text, stops=()):
    decoder = StreamDecoder(tokenizer, stops)
    pieces = []
    for token in tokenizer(text, add_special_tokens=False)["input_ids"]:
        piece, ended = decoder.push(token)
        pieces.append(piece)
        if ended:
            return pieces, True
    return [*pieces, decoder.flush()], False


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(blacklist_categories=("Cs",)), max_size=40))
def test_pieces_join_to_the_text(tokenizer, text):
    pieces, ended = stream(tokenizer, text)
    assert not ended
    assert "".join(pieces) == tokenizer.decode(
        tokenizer(text, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False
    )
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text


def test_stops_before_the_stop_string_and_never_shows_its_beginning(tokenizer):
    pieces, ended = stream(tokenizer, "Hello there<end>more", ["<end>"])
    assert ended
    assert "".join(pieces) == "Hello there"


def test_what_only_looked_like_a_stop_string_is_given_back(tokenizer):
    pieces, ended = stream(tokenizer, "a <en b <end", ["<end>"])
    assert not ended
    assert "".join(pieces) == "a <en b <end"
