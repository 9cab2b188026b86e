"""Registered with pytest by entry point, so that assertions in the kits are rewritten to show their values."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite("forge.testing.backend", "forge.testing.sampling", "forge.testing.kv_cache")
