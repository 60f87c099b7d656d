"""transformers' progress bars and verbosity can be switched off and restored."""

from __future__ import annotations

import warnings
from typing import Any

import pytest

from dfrot.compat.logs import quiet_transformers


def test_nothing_is_shown_and_the_settings_come_back(capfd: pytest.CaptureFixture[str], build_model: Any) -> None:
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    with quiet_transformers():
        assert not logging.is_progress_bar_enabled()
        logging.get_logger("transformers.test").warning("not shown")
        warnings.warn("not shown", stacklevel=1)
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
    assert "not shown" not in "".join(capfd.readouterr())
    with pytest.raises(RuntimeError), quiet_transformers():
        raise RuntimeError
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == (level, bars)
