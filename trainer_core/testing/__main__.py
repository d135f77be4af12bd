"""One check of a suite, in the process with the devices that it needs: its result as JSON."""

from __future__ import annotations

import json
import sys

from trainer_core.errors import TrainerError
from trainer_core.testing.sharded import call

try:
    print(json.dumps(call(sys.argv[1], sys.stdin.read())))
except TrainerError as error:
    sys.exit(str(error))
