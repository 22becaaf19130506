"""One machine without Docker: the Triton that PyPI carries, for `run_server.sh`, tests and builds.

Not in the image. May import `triton_hf`; the product never imports this package.
"""
