"""Every cell of scheme x target: what fits loads in its engine and computes the same, what does not is refused in one
line with a scheme that works."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import Tensor

from dfrot.errors import UnsupportedError
from dfrot.export.engine_arithmetic import load_with_engine_arithmetic
from dfrot.export.engines import Logits, transformers_logits
from dfrot.export.fit import SCHEMES, fit, matrix, nearest
from dfrot.export.run import export
from dfrot.export.targets import TARGETS, engine_activation_clip
from dfrot.quant.scheme import QuantScheme

CELLS = [(scheme, target) for scheme in SCHEMES for target in TARGETS]
HELD = [cell for cell in CELLS if fit(TARGETS[cell[1]], QuantScheme.parse(cell[0])).reason is None]
REFUSED = [cell for cell in CELLS if cell not in HELD]
# float32 around the same integers: rounding of sums. llama.cpp quantizes activations to 8-bit blocks of 32 first.
LIMITS = {"gptq": 1e-4, "compressed-tensors": 1e-4, "gguf": 3e-2}


def limit(scheme: QuantScheme, target: str) -> float:
    if target == "compressed-tensors" and not scheme.w_sym:
        return 5e-3  # dequantize=True computes the dense weights in bfloat16; test_compressed_tensors.py has them exact
    return LIMITS[target]


@pytest.mark.parametrize(("scheme", "target"), [cell for cell in HELD if "fp4" not in cell[0]])  # test_fp4.py has them
def test_what_fits_computes_the_same(
    scheme: str,
    target: str,
    pack: Callable[[str], Path],
    own: Callable[[Path], Tensor],
    engine: Callable[[str, Path], Logits],
    ids: Tensor,
    kit: SimpleNamespace,
    tmp_path: Path,
) -> None:
    source = pack(scheme)
    evidence = export(source, target, tmp_path / "out")
    theirs = engine(target, tmp_path / "out")(ids)
    ours = (
        transformers_logits(load_with_engine_arithmetic(source))(ids)
        if QuantScheme.parse(scheme).a_bits != 16
        else own(source)
    )
    assert kit.difference(ours, theirs) < limit(QuantScheme.parse(scheme), target)
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() > 0.95
    storage = fit(TARGETS[target], QuantScheme.parse(scheme)).storage
    assert evidence["storage"] == (storage.name if storage else "dense")


@pytest.mark.parametrize(("scheme", "target"), REFUSED)
def test_what_does_not_fit_is_refused_with_what_would(
    scheme: str, target: str, pack: Callable[[str], Path], tmp_path: Path
) -> None:
    source = pack(scheme)
    with pytest.raises(UnsupportedError) as caught:
        export(source, target, tmp_path / "out")
    text = str(caught.value)
    fitted = fit(TARGETS[target], QuantScheme.parse(scheme))
    assert "\n" not in text
    assert fitted.reason is not None
    assert fitted.reason in text
    assert f"`scheme={fitted.instead}`" in text
    assert not (tmp_path / "out").exists()


def test_the_nearest_scheme_is_always_accepted() -> None:
    for target, w, a, kv, group, tail in product(
        TARGETS.values(), (2, 3, 4, 6, 8), (4, 8, 16), ("", "kv4"), ("", "-g8", "-g96", "-g128"), ("", "-wasym", "-sym")
    ):
        scheme = QuantScheme.parse(f"w{w}a{a}{kv}{group}{tail}")
        again = fit(target, QuantScheme.parse(nearest(target, scheme)))
        assert again.reason is None, (target.name, scheme.name)


def test_weights_change_last() -> None:
    """The same weights under another name are preferred to other weights."""
    for row in (matrix(("w4a4kv4-g32", "w4a8-g32", "w4a8kv8-g32-wasym"))).values():
        for fitted in row.values():
            assert fitted.instead is not None
            assert fitted.instead.startswith("w4a")
            assert "-g32" in fitted.instead


def test_served_clip_is_the_convention_of_the_engines() -> None:
    """max|x| / (2^(b-1) - 1/2) = clip max|x| / (2^(b-1) - 1)."""
    for bits in (4, 8):
        assert engine_activation_clip(bits) / (2 ** (bits - 1) - 1) == pytest.approx(1 / (2 ** (bits - 1) - 0.5))
