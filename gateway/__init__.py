"""The bounded HTTP front: parses KServe v2 requests itself and passes them to tritonserver over gRPC.

Imports ``base`` and ``pipeline``.
"""
