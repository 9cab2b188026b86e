"""The HTTP server. Knows the engine's messages; never imports torch."""
