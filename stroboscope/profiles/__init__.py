"""Collecting profiles: from the engine's captures to plain data."""
