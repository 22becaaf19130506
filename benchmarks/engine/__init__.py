"""The engine behind Triton beside its peers, what Triton and each API cost, and how exact it is."""
