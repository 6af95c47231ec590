"""Finds or unpacks tritonserver, starts it, waits until it is ready, and stops it."""
