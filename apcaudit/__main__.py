"""Run the command as `python -m apcaudit`."""

from __future__ import annotations

import sys

from apcaudit.cli import main

sys.exit(main())
