"""Non-uniform allocation: how many zeros each block gets when the total is given.

`sl.prune(..., sparsity={block: fraction})` takes what the functions here return, or a mapping of
your own: block numbers or the full names of linears to fractions or 'n:m'. `owl` asks where the
outliers are, `by_sensitivity` what a block costs when it alone is pruned. `by_depth` and `evolve`
prune the model and look at its predictions: along a line over the depth, or as a search finds.
"""
