"""What measures: the engine, the load generator, scaling, a soak, hostile requests.

Benchmarks may use products, tools and `lib`; nothing but tests may use them.
`python -m benchmarks.PART.NAME` works from the root of a checkout.
"""

import tools  # noqa: F401 - finds the packages of this checkout
