"""``python -m tessella`` is the ``tessella`` command."""

import sys

from tessella.cli import main

sys.exit(main())
