"""The machine in plain Python: the reference for the compiled one, and its stand-in where that isn't installed."""
