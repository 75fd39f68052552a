"""The parts of `scripts/peers.py`."""
