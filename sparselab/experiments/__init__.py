"""Runs that compare methods: sweeps, tables and the papers' figures."""
