"""The methods as the guide's section A writes them, plainly and slowly: what the fast versions are
held against."""

import numpy as np
import torch


def magnitude_mask(w, sparsity, n=0, m=0):
    """A.1: pruned where |W| <= the sorted value at the floor of the share (one too many, as
    published)."""
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
    order = scores.sort(dim=1, stable=True).indices[:, : int(w.shape[1] * sparsity)]
    return mask.scatter_(1, order, True)


def group_mask(scores, n, m):
    """The n lowest of every m consecutive columns."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for a in range(0, scores.shape[1], m):
        lowest = scores[:, a : a + m].topk(n, dim=1, largest=False).indices
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
                scores = (w[:, j : j + m] / r.diagonal()[j : j + m]) ** 2
                mask[:, j - a : j - a + m] = group_mask(scores, n, m)
            q = torch.where(mask[:, j - a], 0, w[:, j])
            errors[:, j - a] = (w[:, j] - q) / r[j, j]
            w[:, j:b] -= errors[:, j - a, None] * r[j, j:b]
            w[:, j] = q
        w[:, b:] -= errors @ r[a:b, b:]
    return w


def optimal_brain_surgeon(w, x, sparsity, damp=0.01):
    """The same by its definition, in float64, for one block: at every column the weights to its
    right are the exact minimiser of ||W X - W' X||^2 + damping, given all columns up to it. No
    Cholesky factor anywhere.
    """
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
        change = w[:, : j + 1] - new[:, : j + 1]
        new[:, j + 1 :] = w[:, j + 1 :] + change @ h[: j + 1, j + 1 :] @ torch.linalg.inv(
            h[j + 1 :, j + 1 :]
        )
    return new.masked_fill(mask, 0)


def relative_error(w, new, x):
    """||W X - W' X|| / ||W X||, in float64."""
    x = x.double()
    return ((x @ (w - new).double().T).norm() / (x @ w.double().T).norm()).item()


def sparsellm_opt(w1, b1, w2, b2, x, sparsity, n=0, m=0, epochs=4, penalty=0.1):
    """A.5.2 line by line in the inputs' precision: x [tokens, d] -> new W1, W2, pruned by
    `sparsegpt` in every epoch."""
    y = torch.relu(x @ w1.T + b1) @ w2.T + b2
    z = x @ w1.T + b1
    p, inverse = torch.relu(z), torch.linalg.pinv(x)
    for epoch in range(epochs):
        if epoch:
            w1 = (inverse @ (z - b1)).T
            for _ in range(10):
                w2 = w2 - 0.01 * 2 / y.numel() * (p @ w2.T + b2 - y).T @ p
        w1, w2 = sparsegpt(w1, x, sparsity, n, m), sparsegpt(w2, p, sparsity, n, m)
        normal = penalty * w2.T @ w2 + penalty * torch.eye(len(w1), dtype=x.dtype)
        p = torch.linalg.solve(normal, penalty * w2.T @ (y - b2).T + penalty * torch.relu(z).T).T
        mean = x @ w1.T + b1
        up, low = ((p + mean) / 2).clamp(min=0), mean.clamp(max=0)
        cost_up, cost_low = (p - up) ** 2 + (up - mean) ** 2, p**2 + (low - mean) ** 2
        z = torch.where(cost_up <= cost_low, up, low)
    return w1, w2


def sparsellm_llama(up, gate, down, x, sparsity, n=0, m=0, epochs=4, penalty=5.0):
    """A.5.3 line by line: x [tokens, d] -> new W_up, W_gate, W_down."""
    silu = torch.nn.functional.silu
    z, s, inverse = x @ up.T, x @ gate.T, torch.linalg.pinv(x)
    p = silu(s) * z
    y = p @ down.T
    for epoch in range(epochs):
        if epoch:
            up, gate, down = (inverse @ z).T, (inverse @ s).T, (torch.linalg.pinv(p) @ y).T
        up, gate = sparsegpt(up, x, sparsity, n, m), sparsegpt(gate, x, sparsity, n, m)
        down = sparsegpt(down, p, sparsity, n, m)
        normal = down.T @ down + torch.eye(len(up), dtype=x.dtype)
        p = torch.linalg.solve(normal, down.T @ y.T + (silu(s) * z).T).T
        z = (x @ up.T + silu(s) * p) / (silu(s) ** 2 + 1)
        for _ in range(2):
            slope = torch.sigmoid(s) * (1 + s * (1 - torch.sigmoid(s)))
            s = s - 0.01 * 2 * penalty * ((s - x @ gate.T) - (p - silu(s) * z) * z * slope)
    return up, gate, down


def dsnot(w, x, sparsity, n=0, m=0, cycles=50, threshold=0.1):
    """A.7 line by line, one row and one cycle at a time: w [r, c], x [sequences, tokens, c] ->
    pruned bool [r, c]."""
    mean = x.sum(1).mean(0)
    variance = x.var(1, unbiased=False).mean(0)
    scores = w.abs() * x.flatten(0, 1).square().mean(0).sqrt()
    pruned = wanda_mask(w, x.flatten(0, 1), sparsity, n, m)
    for row, effect, score in zip(pruned, w * mean, scores, strict=True):
        error = effect[row].sum()
        key = torch.where(
            row, effect / variance, 0
        ).nan_to_num()  # published: 0/0 of dead inputs sorts first
        grow = key.argsort(descending=bool(error > 0)).tolist()
        kept = [j for j in score.argsort().tolist() if not row[j]]
        shrink = [j for j in kept if (effect[j] < 0) == bool(error > 0)]
        used = set()
        for k in range(min(cycles, len(grow))):
            g = grow[k]
            if m:
                group = [j for j in kept if j // m == g // m and j not in used]
            p = (group[0] if group else None) if m else (shrink[k] if k < len(shrink) else None)
            if p is None or not row[g] or abs(error) <= threshold:
                break
            new = error + effect[p] - effect[g]
            if new.sign() != error.sign():
                break
            row[g], row[p], error = False, True, new
            used |= {g, p}
    return pruned


def alps(w, x, sparsity, n=0, m=0, damp=0.01, rho=0.1, iterations=300):
    """ALPS by its released code in numpy and float64, up to its conjugate gradients: w [r, c], x
    [tokens, c] -> kept bool [r, c]; scaled inputs, a new inverse for every penalty."""
    w, x = w.double().numpy(), x.double().numpy()
    h = x.T @ x
    h += damp * np.diag(h).mean() * np.eye(len(h))
    norm = np.sqrt(np.diag(h))
    h, dense = h / np.outer(norm, norm), w * norm

    def largest(b):
        if m:
            order = (-np.abs(b)).reshape(-1, m).argsort(1)
            kept = np.zeros(order.shape, bool)
            np.put_along_axis(kept, order[:, : m - n], True, 1)
        else:
            kept = np.zeros(b.size, bool)
            kept[(-np.abs(b)).ravel().argsort()[: b.size - int(sparsity * b.size + 1e-6)]] = True
        return kept.reshape(b.shape)

    d, v, seen, first = dense * largest(dense), 0 * dense, largest(dense), dense * largest(dense)
    started = False
    for i in range(iterations):
        b = np.linalg.solve(h + rho * np.eye(len(h)), (dense @ h - v + rho * d).T).T
        d = b + v / rho
        support = largest(d)
        d = d * support
        v = v + rho * (b - d)
        if (i + 1) % 3 == 0:
            change = (support ^ seen).sum()
            share = change / support.sum()
            if share > 0.1:
                started, rho = True, 1.3 * rho
            elif share > 0.005:
                started, rho = True, 1.2 * rho
            elif change and started:
                rho *= 1.1
            elif change:
                rho, d, v = rho / 5, first, 0 * v
            elif started:
                break
            else:
                rho /= 5
            rho, seen = min(rho, 1e6), support
            if i >= 30 and share < 3e-4:
                break
    return torch.from_numpy(largest(b))
