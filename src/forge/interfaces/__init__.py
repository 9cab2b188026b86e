"""What a plugin author reads: one module for each kind of component. Only `backend` imports torch."""
