"""An engine for tests, with the interface of a driver. The environment variable FAKE says what it does.

refuse: it raises. hang: it never ends. nonsense: its answer lacks what was asked for. Else FAKE names a JSON file with
the `losses` and `tokens` of its answer.
"""

import json
import os
import sys
import time
from pathlib import Path

behaviour = os.environ["FAKE"]
if behaviour == "refuse":
    raise NotImplementedError("no kernel for these weights")
if behaviour == "hang":
    time.sleep(600)
answer = {"versions": {"fake": "1"}, "linears": {"FakeKernel": 14}, "losses": [], "tokens": []}
if behaviour != "nonsense":
    answer |= json.loads(Path(behaviour).read_text())
Path(sys.argv[2]).write_text(json.dumps(answer))
