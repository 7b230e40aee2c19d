"""Metrics, exact and on the device, for fit_core.Runner and for loops of your own."""
