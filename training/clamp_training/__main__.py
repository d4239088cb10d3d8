"""`python -m clamp_training VERB ...` is `clamp train VERB ...`; torchrun starts it so on many processes."""

import sys

from clamp_ros.contract.errors import ClampError
from clamp_training.cli import main
from clamp_training.processes import leave

try:
    leave(main())
except ClampError as error:
    print(f"clamp train: {error}", file=sys.stderr)
    leave(2)
