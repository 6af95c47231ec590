"""Prometheus and Grafana configuration, and the generator of the dashboard."""
