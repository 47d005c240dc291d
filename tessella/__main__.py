"""``python -m tessella`` is the ``tessella`` command."""

import sys

from tessella.cli.entry import main

sys.exit(main())
