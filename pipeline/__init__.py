"""The segmentation maths: pure NumPy and OpenCV, importable without Triton. Imports no other room.

Calibration, verification, clients and server all call this package, so a number measured in one place holds in every
other.
"""
