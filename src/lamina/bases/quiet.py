"""Libraries without bars, log lines and warnings, for a block."""

import contextlib
import io
import sys
import warnings
from collections.abc import Iterator
from logging import ERROR, getLogger

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging

_BNB = getLogger("bitsandbytes")


@contextlib.contextmanager
def quiet(*, swallow_stderr: bool = False) -> Iterator[None]:
    """Silence transformers, the Hub's client, bitsandbytes and, where it is loaded, diffusers by
    their own switches, and put every switch back.

    `swallow_stderr` also drops what is written to `sys.stderr`: reading GGUF draws a bar that no
    switch reaches. Switches and stderr are the process's, so keep the block short.
    """
    hub_verbosity, of_bnb = hub_logging.get_verbosity(), _BNB.level
    alike = [logging, sys.modules.get("diffusers.utils.logging")]
    found = [(each, each.get_verbosity()) for each in alike if each is not None]
    bars = [each for each, _ in found if each.is_progress_bar_enabled()]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if swallow_stderr:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        for each, _ in found:
            each.set_verbosity_error()
        hub_logging.set_verbosity(ERROR)
        _BNB.setLevel(ERROR)
        for each in bars:
            each.disable_progress_bar()
        try:
            yield
        finally:
            for each, verbosity in found:
                each.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            _BNB.setLevel(of_bnb)
            for each in bars:
                each.enable_progress_bar()
