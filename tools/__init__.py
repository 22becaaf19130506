"""What `make` runs: up, down, load, lint, test, audit, generators and the mirror of the Hub.

Tools make things. They may use the embedded cluster and the products, and never tests, `lib` or
benchmarks. `python -m tools.NAME` works from the root of a checkout.
"""

import sys

from tools.place import python_path

sys.path.extend(path for path in python_path().split(":") if path not in sys.path)
