"""Messages of the plugin: a standard logger that is visible without configuration."""

from __future__ import annotations

import logging
import os


def logger() -> logging.Logger:
    """The logger ``horovod_qoda``.

    It writes to standard error at level INFO, or ``HOROVOD_QODA_LOG_LEVEL``, unless the script has
    configured logging itself: a compressor that is silently inactive is the worst failure a user
    of one can have, so what it does is said once by default.
    """
    log = logging.getLogger("horovod_qoda")
    if log.level == logging.NOTSET:
        log.setLevel(os.environ.get("HOROVOD_QODA_LOG_LEVEL", "INFO").upper())
        if not logging.getLogger().handlers and not log.handlers:
            handler = logging.StreamHandler()
            handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
            log.addHandler(handler)
            log.propagate = False
    return log
