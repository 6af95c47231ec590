"""Prometheus and Grafana configuration, and what writes the dashboard."""
