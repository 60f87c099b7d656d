"""`import dfrot` and `import transformers` in either order, each in its own interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWN = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING
assert AUTO_QUANTIZER_MAPPING["dfq"].__name__ == "DfqHfQuantizer"
assert AUTO_QUANTIZATION_CONFIG_MAPPING["dfq"].__name__ == "DfqQuantizationConfig"
import sys
from dfrot.compat.import_hook import _AfterImport, install
install()
assert not any(isinstance(finder, _AfterImport) for finder in sys.meta_path)
"""
ORDERS = {
    "dfrot first, installed twice": (
        "import dfrot, sys\nfrom dfrot.compat import import_hook\nimport_hook.install()\n"
        "assert sum(isinstance(f, import_hook._AfterImport) for f in sys.meta_path) == 1\n" + KNOWN
    ),
    "transformers first": "import transformers.quantizers.auto\nimport dfrot\n" + KNOWN,
    "lazy transformers first": "import transformers, dfrot\ntransformers.AutoConfig\n" + KNOWN,
}


def python(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("order", ORDERS)
def test_import_order_does_not_matter(order: str) -> None:
    python(ORDERS[order])


def test_import_is_light() -> None:
    python(
        "import sys, dfrot\n"
        "for name in ('torch', 'transformers', 'numpy', 'dfrot_kernels'):\n"
        "    assert name not in sys.modules, name\n"
        "assert dfrot.QuantScheme.parse('w4a4kv4').name == 'w4a4kv4'\n"
        "assert 'transformers' not in sys.modules\n"
        "import torch\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'Checkpoint' in dir(dfrot) and dfrot.__version__\n"
        "try:\n    dfrot.nonsense\nexcept AttributeError as error:\n    assert 'nonsense' in str(error)\n"
        "else:\n    raise SystemExit('no AttributeError')\n"
    )
