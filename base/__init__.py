"""What every room on the host needs: fetching and caching, paths, progress, names. Imports nothing of the project."""
