"""The methods as the guide's section A writes them, plainly and slowly: what the fast versions are held against."""
import torch


def magnitude_mask(w, sparsity, n=0, m=0):
    """A.1: pruned where |W| <= the sorted value at the floor of the share (one too many, as published)."""
    if m:
        return group_mask(w.abs(), n, m)
    threshold = w.abs().flatten().sort().values[int(w.numel() * sparsity)]
    return w.abs() <= threshold


def wanda_mask(w, x, sparsity, n=0, m=0):
    """A.2: |W| sqrt(mean x^2), the floor(c s) smallest of every row by a stable sort."""
    scores = w.abs() * x.square().mean(0).sqrt()
    if m:
        return group_mask(scores, n, m)
    mask = torch.zeros_like(w, dtype=torch.bool)
    order = scores.sort(dim=1, stable=True).indices[:, :int(w.shape[1] * sparsity)]
    return mask.scatter_(1, order, True)


def group_mask(scores, n, m):
    """The n lowest of every m consecutive columns."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for a in range(0, scores.shape[1], m):
        lowest = scores[:, a:a + m].topk(n, dim=1, largest=False).indices
        mask.scatter_(1, a + lowest, True)
    return mask


def sparsegpt(w, x, sparsity, n=0, m=0, block=128, damp=0.01):
    """A.3 line by line: w [r, c], x [tokens, c] -> new weight."""
    w, h = w.clone(), 2 / len(x) * x.T @ x
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    h += damp * h.diagonal().mean() * torch.eye(len(h), dtype=h.dtype)
    r = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for a in range(0, w.shape[1], block):
        b = min(a + block, w.shape[1])
        if not m:
            scores = (w[:, a:b] / r.diagonal()[a:b]) ** 2
            mask = scores <= scores.flatten().sort().values[int(scores.numel() * sparsity)]
        else:
            mask = torch.zeros_like(w[:, a:b], dtype=torch.bool)
        errors = torch.zeros_like(w[:, a:b])
        for j in range(a, b):
            if m and (j - a) % m == 0:
                scores = (w[:, j:j + m] / r.diagonal()[j:j + m]) ** 2
                mask[:, j - a:j - a + m] = group_mask(scores, n, m)
            q = torch.where(mask[:, j - a], 0, w[:, j])
            errors[:, j - a] = (w[:, j] - q) / r[j, j]
            w[:, j:b] -= errors[:, j - a, None] * r[j, j:b]
            w[:, j] = q
        w[:, b:] -= errors @ r[a:b, b:]
    return w


def optimal_brain_surgeon(w, x, sparsity, damp=0.01):
    """The same by its definition, in float64, for one block: at every column the weights to its right are the exact
    minimiser of ||W X - W' X||^2 + damping, given all columns up to it. No Cholesky factor anywhere."""
    w, new = w.double(), w.double().clone()
    h = x.double().T @ x.double() / len(x)
    h += damp * h.diagonal().mean() * torch.eye(len(h), dtype=torch.float64)
    width = w.shape[1]
    curvature = torch.stack([1 / torch.linalg.inv(h[j:, j:])[0, 0] for j in range(width)])
    count = int(sparsity * w.numel() + 1e-6)
    lowest = (w**2 * curvature).flatten().topk(count, largest=False).indices
    mask = torch.zeros(w.numel(), dtype=torch.bool).scatter_(0, lowest, True).view_as(w)
    for j in range(width):
        new[mask[:, j], j] = 0
        change = w[:, :j + 1] - new[:, :j + 1]
        new[:, j + 1:] = w[:, j + 1:] + change @ h[:j + 1, j + 1:] @ torch.linalg.inv(h[j + 1:, j + 1:])
    return new.masked_fill(mask, 0)


def relative_error(w, new, x):
    """||W X - W' X|| / ||W X||, in float64."""
    x = x.double()
    return ((x @ (w - new).double().T).norm() / (x @ w.double().T).norm()).item()
