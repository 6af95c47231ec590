"""Coverage-guided fuzzing of what reads bytes from elsewhere: `make fuzz`, or `python -m tests.fuzz`."""
