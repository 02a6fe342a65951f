"""Runs whose formats a policy decides."""
