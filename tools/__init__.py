"""How this project tests its notebooks."""

# Kernels of tests and of stored runs: no network, small multiples in place of sliders, and the same
# numbers each time, which takes one thread: with two, SparseGPT's sums come in another order and
# differ by more than the tests allow.
KERNEL_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "SPARSELAB_STATIC": "1",
    "OMP_NUM_THREADS": "1",
}
