"""Benchmarks: what is compared runs side by side, interleaved, in one run on one machine."""
