"""transformers and the Hub's client without bars, log lines and warnings, for a block."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from logging import ERROR

from huggingface_hub.utils import logging as hub_logging
from transformers.utils import logging


@contextlib.contextmanager
def quiet(*, swallow_stderr: bool = False) -> Iterator[None]:
    """Silence both libraries through their own switches, and put every switch back.

    `swallow_stderr` also drops what is written to `sys.stderr`: reading GGUF draws a bar that no
    switch reaches. Switches and stderr are the process's, so keep the block short.
    """
    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        if swallow_stderr:
            stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        logging.set_verbosity_error()
        hub_logging.set_verbosity(ERROR)
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            hub_logging.set_verbosity(hub_verbosity)
            if bars:
                logging.enable_progress_bar()
