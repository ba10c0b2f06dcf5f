"""The exercises of the notebooks, one file each, and the checks that name a mistake."""
