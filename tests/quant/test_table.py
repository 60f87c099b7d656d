from __future__ import annotations

import pytest

from dfrot.errors import InputError, UnsupportedError
from dfrot.quant.config import DfqConfig
from dfrot.quant.scheme import QuantScheme
from dfrot.quant.table import TableScheme


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("16", TableScheme()),
        (8, TableScheme(8)),
        ("8-g64", TableScheme(8, 64)),
        ("4", TableScheme(4, 32)),
        ("4-g0", TableScheme(4, 0)),
        ("4-g64-asym", TableScheme(4, 64, False)),
        ("4+256", TableScheme(4, 32, True, 256)),
        ("4-g64-asym+8", TableScheme(4, 64, False, 8)),
    ],
)
def test_names(text: str | int, expected: TableScheme) -> None:
    assert TableScheme.parse(text) == expected
    assert expected.name == str(text)
    assert TableScheme.parse(expected.name) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "8-g12", "16-g32", "16-asym", "8-sym", "w8", "4-g", "-8", "4+", "8+256", "16+1"]
)
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(UnsupportedError):
        TableScheme.parse(text)


def test_the_entry_of_a_config_holds_quantized_tables_only() -> None:
    plain = DfqConfig(QuantScheme())
    assert not {"embed", "head"} & set(plain.to_dict())
    config = DfqConfig(QuantScheme(), keep=(), embed=TableScheme(8), head=TableScheme(4, 64, False))
    entry = config.to_dict()
    assert entry["head"] == {"bits": 4, "group": 64, "symmetric": False}
    assert DfqConfig.from_dict(entry) == config
    second = DfqConfig(QuantScheme(), keep=(), head=TableScheme(4, 32, True, 9)).to_dict()
    assert second["head"] == {"bits": 4, "group": 32, "symmetric": True, "second_rows": 9}
    assert DfqConfig.from_dict(second).head.second_rows == 9


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ({"bits": 8, "group": 0, "color": 1}, UnsupportedError),
        ({"bits": 7}, UnsupportedError),
        ({"bits": 8, "second_rows": 4}, UnsupportedError),
        ({"bits": 4, "second_rows": -4}, UnsupportedError),
        ({"bits": 4, "second_rows": "x"}, InputError),
        ({"bits": 8, "group": -8}, UnsupportedError),
        ({"group": 8}, InputError),
        ({"bits": "many"}, UnsupportedError),
        ({"bits": 8, "symmetric": 1}, InputError),
        ({"bits": 8, "group": 2**63}, UnsupportedError),
        (8, InputError),
    ],
)
def test_malformed_entries(value: object, error: type[Exception]) -> None:
    entry = DfqConfig(QuantScheme()).to_dict()
    with pytest.raises(error):
        DfqConfig.from_dict({**entry, "embed": value})
