"""The parts of `tokenq reproduce decline`."""
