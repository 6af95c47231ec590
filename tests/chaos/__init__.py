"""The promises of docs/reliability.md, tried on the real server: `python -m tests.chaos`."""
