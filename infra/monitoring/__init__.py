"""How a fleet is watched: what Prometheus scrapes and alerts on, and what Grafana shows."""
