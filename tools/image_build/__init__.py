"""Builds the images: command, the engine that builds, the bases made here, closed networks.

Standard library only, because `make up` starts on a bare machine.
"""
