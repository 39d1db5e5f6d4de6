"""Requests and responses as values, and their carriers for ASGI and WSGI."""
