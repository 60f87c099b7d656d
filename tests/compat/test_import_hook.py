"""A plug-in is imported right after its trigger, whichever of the two is imported first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = "import trigger_module\nevents = ['plug-in']\ntrigger_module.events.append('plug-in')\n"
ARRANGE = (
    "from dfrot.compat.import_hook import import_after, pending\nimport_after('trigger_module', 'plugin_module')\n"
)
ENDS = "assert trigger_module.events == ['trigger', 'plug-in'], trigger_module.events\n"
NOT_PENDING = "from dfrot.compat.import_hook import pending\nassert not pending('trigger_module')\n"
CODE = {
    "arranged before the trigger": ARRANGE
    + "assert pending('trigger_module')\nimport trigger_module\n"
    + NOT_PENDING
    + ENDS,
    "arranged twice": ARRANGE + ARRANGE + "import trigger_module\n" + NOT_PENDING + ENDS,
    "arranged after the trigger": "import trigger_module\n" + ARRANGE + NOT_PENDING + ENDS,
    "the plug-in imports the trigger": ARRANGE + "import plugin_module, trigger_module\n" + NOT_PENDING + ENDS,
}


@pytest.mark.parametrize("case", CODE)
def test_the_plug_in_follows_its_trigger(case: str, tmp_path: Path) -> None:
    (tmp_path / "trigger_module.py").write_text("events = ['trigger']\n")
    (tmp_path / "plugin_module.py").write_text(PLUGIN)
    code = f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n" + CODE[case]
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


def test_loading_a_model_needs_the_module_that_triggers_ours() -> None:
    """transformers looks quantizers up in `transformers.quantizers.auto`: whoever can load a model has imported it."""
    code = (
        "import sys\nfrom transformers import AutoModelForCausalLM, LlamaForCausalLM\n"
        "from dfrot.compat.import_hook import QUANTIZER_TABLES\nassert QUANTIZER_TABLES in sys.modules\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
