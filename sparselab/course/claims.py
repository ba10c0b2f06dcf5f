"""What a lesson claims, as a line of code that each run checks."""

import os


def claim(holds: bool, what: str) -> None:
    """Check a claim of the text around it, with the margin that the comparison names.

    holds: the comparison, such as `wanda > 1.2 * sparsegpt`. what: the claim as a sentence. Where
    the notebooks are executed and tested (SPARSELAB_STATIC=1) on their own model, a false claim is
    an AssertionError. A reader who changes the model or a setting reads instead that it does not
    hold there.
    """
    if holds:
        return
    if os.environ.get("SPARSELAB_STATIC") == "1" and "SPARSELAB_MODEL" not in os.environ:
        raise AssertionError(f"the lesson claims what does not hold in this run: {what}")
    print(f"With your model or settings this does not hold: {what}")
