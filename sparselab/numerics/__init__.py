"""Sums over calibration tokens, and the linear algebra on them."""
