"""The exercises of notebook 10."""

import math

import torch

from .checking import Exercise


# 10.1 perplexity from windows of unequal length
def _joined(losses, counts):  # [k] mean losses, [k] predictions -> float
    return math.exp(((losses * counts).sum() / counts.sum()).item())


def _token_by_token(losses, counts):
    every = [
        loss
        for loss, count in zip(losses.tolist(), counts.tolist(), strict=True)
        for _ in range(count)
    ]
    return math.exp(sum(every) / len(every))


# 10.2 one loss in three units
def _units(
    perplexity, predictions, words, size
):  # float, ints -> (perplexity of a word, bits per byte)
    nats = predictions * math.log(perplexity)
    return math.exp(nats / words), nats / size / math.log(2)


def _by_powers(perplexity, predictions, words, size):
    return perplexity ** (predictions / words), math.log2(perplexity) * predictions / size


# 10.3 how long are the windows?
def _windows(tokens, positions):  # -> (length of a window, windows, tokens left over)
    length = min(2048, positions)
    return length, tokens // length, tokens % length


def _published(tokens, positions):
    return positions, tokens // positions, tokens % positions


def _always(tokens, positions):
    return 2048, tokens // 2048, tokens % 2048


def _with_the_rest(tokens, positions):
    length = min(2048, positions)
    return length, -(-tokens // length), 0


# 10.4 two models on the same items
def _paired(a, b):  # bool [n], bool [n] -> (difference of accuracies, error)
    difference = b.double() - a.double()
    return difference.mean().item(), difference.std().item() / math.sqrt(len(a))


def _from_counts(a, b):
    n, gained, lost = len(a), (b & ~a).sum().item(), (a & ~b).sum().item()
    mean = (gained - lost) / n
    return mean, math.sqrt(((gained + lost) / n - mean**2) / (n - 1))


def _one_less_inside(a, b):
    n, gained, lost = len(a), (b & ~a).sum().item(), (a & ~b).sum().item()
    mean = (gained - lost) / n
    return mean, math.sqrt(((gained + lost) / (n - 1) - mean**2) / n)


def _two_errors(a, b):
    p, q = (x.double().mean().item() for x in (a, b))
    return q - p, math.sqrt((p * (1 - p) + q * (1 - q)) / (len(a) - 1))


def _one_error(a, b):
    p, q = (x.double().mean().item() for x in (a, b))
    return q - p, math.sqrt(q * (1 - q) / (len(a) - 1))


def _spread(a, b):
    mean, stderr = _paired(a, b)
    return mean, stderr * math.sqrt(len(a))


def _only_discordant(a, b):
    split = a != b
    return _paired(a[split], b[split])


# 10.5 which answer?
def _answers(logprobs, choices):  # list of [tokens], list of str -> (by sum, by sum per character)
    sums = torch.stack([one.sum() for one in logprobs])
    lengths = torch.tensor(
        [len(choice) - 1 for choice in choices]
    )  # the blank in front is not counted
    return sums.argmax().item(), (sums / lengths).argmax().item()


def _per_token(logprobs, choices):
    means = torch.stack([one.mean() for one in logprobs])
    return _answers(logprobs, choices)[0], means.argmax().item()


def _with_the_blank(logprobs, choices):
    sums = torch.stack([one.sum() for one in logprobs])
    return (
        sums.argmax().item(),
        (sums / torch.tensor([len(choice) for choice in choices])).argmax().item(),
    )


def _per_byte(logprobs, choices):
    sums = torch.stack([one.sum() for one in logprobs])
    return (
        sums.argmax().item(),
        (sums / torch.tensor([len(choice.encode()) - 1 for choice in choices])).argmax().item(),
    )


def _times_length(logprobs, choices):
    sums = torch.stack([one.sum() for one in logprobs])
    return (
        sums.argmax().item(),
        (sums * torch.tensor([len(choice) - 1 for choice in choices])).argmax().item(),
    )


def _lowest(logprobs, choices):
    sums = torch.stack([one.sum() for one in logprobs])
    lengths = torch.tensor([len(choice) - 1 for choice in choices])
    return sums.argmin().item(), (sums / lengths).argmin().item()


def _by_list(logprobs, choices):
    sums = [sum(one.tolist()) for one in logprobs]
    means = [value / len(choice[1:]) for value, choice in zip(sums, choices, strict=True)]
    return sums.index(max(sums)), means.index(max(means))


LENGTHS = (
    (torch.tensor([3.0, 4.0, 6.0]), torch.tensor([255, 255, 31])),
    (torch.tensor([2.5, 3.5]), torch.tensor([10, 30])),
    (torch.tensor([4.1, 3.9, 4.4, 5.0]), torch.tensor([7, 9, 1, 2])),
)
RIGHT = torch.tensor([1, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 0], dtype=torch.bool)
OTHER = torch.tensor([1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1], dtype=torch.bool)
WORSE = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1, 0, 1, 0], dtype=torch.bool)
# Each case separates one wrong length: tokens, the blank, bytes.
ITEMS = (
    (
        [torch.tensor([-1.0, -1.0]), torch.tensor([-0.7, -0.8, -0.9])],
        [" a stone", " in the garden"],
    ),
    ([torch.tensor([-2.0, -1.2]), torch.tensor([-4.0])], [" elephants", " submarines and ships"]),
    ([torch.tensor([-1.0]), torch.tensor([-1.8])], [" ox", " oxen"]),
    ([torch.tensor([-3.0]), torch.tensor([-2.2, -1.0])], [" cafés à crème", " two teacups here"]),
)
EXERCISES = {
    "10.1": Exercise(
        _joined,
        LENGTHS,
        {
            "a short window would count as much as a long one: weight each mean loss by its "
            "number of predictions": lambda losses, counts: math.exp(losses.mean().item()),
            "that averages perplexities, which gives the hardest window the most weight: "
            "average losses, then exp": (
                lambda losses, counts: ((losses.exp() * counts).sum() / counts.sum()).item()
            ),
            "two faults: perplexities are averaged in place of losses, and all windows count "
            "alike": (lambda losses, counts: losses.exp().mean().item()),
            "counts are predictions already, one less than tokens: subtract nothing more": (
                lambda losses, counts: _joined(losses, counts - 1)
            ),
            "that is the mean loss in nats: perplexity is its exponential": lambda losses, counts: (
                math.log(_joined(losses, counts))
            ),
        },
        right=(_token_by_token,),
        kind="warm-up",
        minutes=4,
    ),
    "10.2": Exercise(
        _units,
        ((40.0, 1000, 700, 4000), (12.5, 255, 190, 1100), (80.0, 64, 32, 300)),
        {
            "bits are logarithms to base 2: divide the nats by log(2)": (
                lambda perplexity, predictions, words, size: (
                    _units(perplexity, predictions, words, size)[0],
                    predictions * math.log(perplexity) / size,
                )
            ),
            "a perplexity is no loss and cannot be scaled: take the logarithm, spread it over "
            "the words, then exp": lambda perplexity, predictions, words, size: (
                perplexity * predictions / words,
                _units(perplexity, predictions, words, size)[1],
            ),
            "upside down: there are fewer words than tokens, so a word costs more than a token": (
                lambda perplexity, predictions, words, size: (
                    perplexity ** (words / predictions),
                    _units(perplexity, predictions, words, size)[1],
                )
            ),
            "the mean loss belongs to a token: multiply by the predictions before you divide by "
            "words and bytes": lambda perplexity, predictions, words, size: (
                math.exp(math.log(perplexity) / words),
                math.log2(perplexity) / size,
            ),
        },
        right=(_by_powers,),
        kind="core",
        minutes=6,
    ),
    "10.3": Exercise(
        _windows,
        ((287645, 2048), (287645, 4096), (287645, 131072), (20000, 256)),
        {
            "this is the published rule itself: a model that can read more gets longer windows, "
            "and another perplexity than the papers' for the same weights": (_published),
            "a model with 256 positions cannot read a window of 2,048: take the smaller of the "
            "two": (_always),
            "the rest is dropped: a last window that is shorter than the others would count as "
            "much as they do": (_with_the_rest),
        },
        right=(
            lambda tokens, positions: (min(positions, 2048), *divmod(tokens, min(positions, 2048))),
        ),
        kind="find-the-bug",
        minutes=5,
    ),
    "10.4": Exercise(
        _paired,
        ((RIGHT, OTHER), (RIGHT, WORSE), (OTHER, WORSE)),
        {
            "that is the error for two different sets of items: both models answered the same "
            "ones, so take the differences": (_two_errors),
            "that is the error of one accuracy, not of a difference": _one_error,
            "n - 1 goes into the factor before the root; the shares b / n and c / n keep their n": (
                _one_less_inside
            ),
            "that is how much one item scatters: the mean of n items is sharper by the square "
            "root of n": (_spread),
            "items on which both agree count too: they are differences of 0, and n counts all": (
                _only_discordant
            ),
            "the sign: b minus a": lambda a, b: (-_paired(a, b)[0], _paired(a, b)[1]),
        },
        right=(_from_counts,),
        kind="core",
        minutes=8,
    ),
    "10.5": Exercise(
        _answers,
        ITEMS,
        {
            "acc_norm divides by characters, so that it does not depend on the tokenizer; that "
            "is the mean over tokens": (_per_token),
            "the blank that joins choice and context is not part of the choice: len(choice) - 1": (
                _with_the_blank
            ),
            "characters, not bytes: an é is one character and two bytes": _per_byte,
            "log-likelihoods are negative sums: divide by the length, do not multiply": (
                _times_length
            ),
            "the likeliest answer has the highest log-likelihood, which is the least negative "
            "one": (_lowest),
        },
        right=(_by_list,),
        kind="stretch",
        minutes=10,
    ),
}
