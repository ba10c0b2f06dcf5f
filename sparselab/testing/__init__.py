"""How this project tests its notebooks."""
# Kernels of tests and of stored runs: no network, the same numbers each time, small multiples in place of sliders.
KERNEL_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "SPARSELAB_STATIC": "1"}
