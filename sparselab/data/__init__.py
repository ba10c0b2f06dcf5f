"""Texts: where they come from, and the windows that are cut from them."""
