"""The TensorRT side of the builder: fp16 and int8 ONNX, plans, and what to do when a plan does not build.

Importing this package needs neither TensorRT nor ModelOpt; the functions that use them import them.
"""
