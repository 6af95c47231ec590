"""Load tests: Locust users, the comparison of precisions with its report, and benchmarks."""
