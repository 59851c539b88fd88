"""Other engines to compare with: one adapter each. A peer lives in a Python environment of its own and runs as a child process that answers requests."""
