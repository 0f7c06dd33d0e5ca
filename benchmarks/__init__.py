"""Benchmarks of tokensieve: ``python -m benchmarks NAME``, see README.md in this folder."""
