"""The systems that `peers.py` compares, each in a process of its own behind one interface."""
