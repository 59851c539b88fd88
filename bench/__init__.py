"""Benchmarks: machine limits, synthetic models, peers."""
