"""The segmentation maths: pure NumPy and OpenCV, importable without Triton.

Calibration, verification, the clients and the server all call this one package, so that a number measured
in one place holds in every other.
"""
