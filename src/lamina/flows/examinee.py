"""A compiled stack that sits exams: the same model and sampling code that chat and serving use."""

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import nn

from lamina.core.errors import DataError
from lamina.data.example import Example, Message
from lamina.exams.examinee import Likelihood, Progress, Prompt
from lamina.flows.answering import answers
from lamina.stack.compile import Compiled
from lamina.tokens.batch import collate
from lamina.tokens.mask import Encoded, encode_all
from lamina.tokens.pack import plan_batches
from lamina.train.fused import FusedDecoder, fuse
from lamina.train.objective import token_losses

BATCH_TOKENS = 4096
MAX_LENGTH = 4096
"""Longest question with its answer; a longer one is cut at its end."""


class StackExaminee:
    """Sits exams with a compiled stack; greedy, hence deterministic."""

    def __init__(self, compiled: Compiled) -> None:
        self._compiled = compiled
        self._format = compiled.format

    @cached_property
    def _scorer(self) -> nn.Module | FusedDecoder:
        """What likelihoods come from: the forward that training uses."""
        return fuse(self._compiled.model)[0] or self._compiled.model

    def answer(
        self, prompts: Sequence[Prompt], max_new_tokens: int, progress: Progress
    ) -> list[str]:
        """One greedy answer a prompt, in order, without the end-of-turn marker."""
        said = answers(
            self._compiled,
            [self._format.prompt_ids(p.messages, p.tools) for p in prompts],
            max_new_tokens=max_new_tokens,
            progress=lambda done: progress(done, len(prompts)),
        )
        return [self._text(ids) for ids in said]

    def _text(self, ids: Sequence[int]) -> str:
        text = self._format.decode(ids)
        for stop in self._format.stop_strings:
            text = text.partition(stop)[0]
        return text

    def log_likelihood(self, examples: Sequence[Example], progress: Progress) -> list[Likelihood]:
        """Of each example's supervised tokens, in order."""
        encoded = encode_all(
            examples, self._format, max_length=MAX_LENGTH, overlong="truncate"
        ).rows
        place = {example.content_digest(): i for i, example in enumerate(examples)}
        owners = [place[row.example] for row in encoded]  # a row may leave none, or several
        return self._likelihoods(len(examples), encoded, owners, progress)

    def choice_scores(self, prompt: Prompt, choices: Sequence[str]) -> list[Likelihood]:
        """Of each choice as the answer to `prompt`: its own tokens only, in order."""
        examples = [
            Example(
                messages=(*prompt.messages, Message(role="assistant", content=choice)),
                tools=prompt.tools,
            )
            for choice in choices
        ]
        rows = [_last_turn_only(self._format.prompt_ids(prompt.messages, prompt.tools), encoded)
                for encoded in self._one_each(examples)]  # fmt: skip
        return self._likelihoods(len(rows), rows, range(len(rows)), lambda done, total: None)

    def _one_each(self, examples: Sequence[Example]) -> list[Encoded]:
        encoded = [
            encode_all([e], self._format, max_length=MAX_LENGTH, overlong="truncate").rows
            for e in examples
        ]
        if any(not rows for rows in encoded):
            raise DataError("a choice leaves nothing to score", hint="shorten its question")
        return [rows[-1] for rows in encoded]

    def _likelihoods(
        self, examples: int, rows: Sequence[Encoded], owners: Sequence[int], progress: Progress
    ) -> list[Likelihood]:
        """Sum each row's loss into the example it came from."""
        scorer = self._scorer  # made outside of inference, or the weights could not be trained over
        with torch.inference_mode():
            return self._scored(scorer, examples, rows, owners, progress)

    def _scored(
        self,
        scorer: nn.Module | FusedDecoder,
        examples: int,
        rows: Sequence[Encoded],
        owners: Sequence[int],
        progress: Progress,
    ) -> list[Likelihood]:
        totals = [[0.0, 0] for _ in range(examples)]
        plan = plan_batches([len(row) for row in rows], BATCH_TOKENS, seed=0, epoch=0)
        done = 0
        for batch_rows in plan:
            batch = collate([rows[i] for i in batch_rows], self._compiled.pad_id)
            losses = token_losses(scorer, batch).double()
            sums = torch.zeros(len(batch_rows), dtype=torch.float64)
            sums.index_add_(0, batch.row_of_target, losses.cpu())
            counts = torch.bincount(batch.row_of_target, minlength=len(batch_rows))
            for row, nll, tokens in zip(batch_rows, sums.tolist(), counts.tolist(), strict=True):
                totals[owners[row]][0] += nll
                totals[owners[row]][1] += tokens
            done += len(batch_rows)
            progress(min(done, examples), examples)
        return [Likelihood(nll, int(tokens)) for nll, tokens in totals]


def _last_turn_only(prompt: Sequence[int], row: Encoded) -> Encoded:
    """The row with only what follows the prompt supervised."""
    mask = row.mask.copy()
    mask[: len(prompt)] = False
    return Encoded(ids=row.ids, mask=mask, example=row.example)
