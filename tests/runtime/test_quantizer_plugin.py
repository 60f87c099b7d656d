"""`import dfrot` and `import transformers` in either order, each in its own interpreter."""

from __future__ import annotations

import subprocess
import sys

import pytest

KNOWN = """
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, AUTO_QUANTIZATION_CONFIG_MAPPING
assert AUTO_QUANTIZER_MAPPING["dfq"].__name__ == "DfqHfQuantizer"
assert AUTO_QUANTIZATION_CONFIG_MAPPING["dfq"].__name__ == "DfqQuantizationConfig"
from dfrot.compat.import_hook import QUANTIZER_TABLES, import_after, pending
import_after(QUANTIZER_TABLES, "dfrot.runtime.quantizer_plugin")
assert not pending(QUANTIZER_TABLES)
"""
TWICE = """
import sys, dfrot
from dfrot.compat.import_hook import QUANTIZER_TABLES, _ImportTrigger, import_after
import_after(QUANTIZER_TABLES, "dfrot.runtime.quantizer_plugin")
waiting = [finder.trigger for finder in sys.meta_path if isinstance(finder, _ImportTrigger)]
assert waiting.count(QUANTIZER_TABLES) == 1
"""
ORDERS = {
    "dfrot first, installed twice": TWICE + KNOWN,
    "transformers first": "import transformers.quantizers.auto\nimport dfrot\n" + KNOWN,
    "lazy transformers first": "import transformers, dfrot\ntransformers.AutoConfig\n" + KNOWN,
    "the plug-in first": "import dfrot.runtime.quantizer_plugin\n" + KNOWN,
    "the base classes first": "from dfrot.compat.quantizers import plugin_bases\nplugin_bases()\n" + KNOWN,
    "the loader first": "import dfrot.runtime.load\n" + KNOWN,
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
