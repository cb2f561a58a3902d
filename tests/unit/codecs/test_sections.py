"""The preview of a codec: size, decoded values and error of one tensor."""

from __future__ import annotations

import numpy as np
import pytest

from fedcompress.codecs import CODECS, preview, sample_spec
from fedcompress.errors import ConfigError, NonFiniteError


@pytest.mark.parametrize("name", CODECS)
def test_every_codec_has_a_preview(name: str) -> None:
    values = np.random.default_rng(0).standard_normal((8, 40))
    shown = preview(sample_spec(name), values)
    assert shown.decoded.shape == (8, 40)
    assert shown.size > 0
    error = np.square(values.astype(np.float32).astype(np.float64) - shown.decoded).sum()
    assert shown.error == pytest.approx(error / np.square(values).sum(), abs=1e-6)


def test_the_line_of_a_preview() -> None:
    assert str(preview("none", [-0.0, 1.5])) == "9 bytes, relative squared error 0: [0, 1.5]"
    assert str(preview("none", np.zeros(11))).endswith("error 0: [0, 0, 0, 0, 0, 0, 0, 0, 0, ...]")


def test_previews_of_what_cannot_be_encoded() -> None:
    with pytest.raises(NonFiniteError):
        preview("none", [np.inf])
    with pytest.raises(ConfigError, match="needs a clause"):
        preview("head: none", [1.0])
    assert preview("head: none", [1.0], group="head").error == 0
