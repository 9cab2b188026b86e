"""Conformance kits: abstract pytest suites that a plugin subclasses with a fixture."""
