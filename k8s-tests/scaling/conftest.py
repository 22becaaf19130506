"""The dashboards' code lives beside the chart, and no other test needs it."""

from __future__ import annotations

import sys

from support.place import ROOT

sys.path.insert(0, str(ROOT / "charts"))
