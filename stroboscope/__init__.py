"""Labelled profiles of running Python web services."""
