"""The exercises of notebook 11."""

import math

import torch

from .checking import Exercise, mistakes


# 11.1 perplexity from windows of unequal length
def _joined(losses, counts):  # [k] mean losses, [k] predictions -> float
    return math.exp(((losses * counts).sum() / counts.sum()).item())


def _token_by_token(losses, counts):
    return math.exp(losses.repeat_interleave(counts).mean().item())


def _windows_alike(losses, counts):
    """a short window would count as much as a long one: weight each mean loss by its number of
    predictions"""
    return math.exp(losses.mean().item())


def _weighted_mean(losses, counts):
    """that averages perplexities, which gives the hardest window the most weight: average losses,
    then exp"""
    return ((losses.exp() * counts).sum() / counts.sum()).item()


def _mean_perplexity(losses, counts):
    """two faults: perplexities are averaged in place of losses, and all windows count alike"""
    return losses.exp().mean().item()


def _one_less(losses, counts):
    """counts are predictions already, one less than tokens: subtract nothing more"""
    return _joined(losses, counts - 1)


def _mean_loss(losses, counts):
    """that is the mean loss in nats: perplexity is its exponential"""
    return math.log(_joined(losses, counts))


# 11.2 one loss in three units
# float, ints -> (perplexity of a word, bits per byte)
def _units(perplexity, predictions, words, size):
    nats = predictions * math.log(perplexity)
    return math.exp(nats / words), nats / size / math.log(2)


def _by_powers(perplexity, predictions, words, size):
    return perplexity ** (predictions / words), math.log2(perplexity) * predictions / size


def _nats_per_byte(perplexity, predictions, words, size):
    """bits are logarithms to base 2: divide the nats by log(2)"""
    nats = predictions * math.log(perplexity)
    return math.exp(nats / words), nats / size


def _scaled_perplexity(perplexity, predictions, words, size):
    """a perplexity is no loss and cannot be scaled: take the logarithm, spread it over the words,
    then exp"""
    return perplexity * predictions / words, _units(perplexity, predictions, words, size)[1]


def _words_over_tokens(perplexity, predictions, words, size):
    """upside down: there are fewer words than tokens, so a word costs more than a token"""
    return perplexity ** (words / predictions), _units(perplexity, predictions, words, size)[1]


def _without_predictions(perplexity, predictions, words, size):
    """the mean loss belongs to a token: multiply by the predictions before you divide by words and
    bytes"""
    return math.exp(math.log(perplexity) / words), math.log2(perplexity) / size


# 11.3 how long are the windows?
def _windows(tokens, positions):  # -> (length of a window, windows, tokens left over)
    length = min(2048, positions)
    return length, tokens // length, tokens % length


def _windows_by_division(tokens, positions):
    length = positions if positions < 2048 else 2048
    return length, *divmod(tokens, length)


def _published(tokens, positions):
    """this is the published rule itself: a model that can read more gets longer windows, and
    another perplexity than the papers' for the same weights"""
    return positions, tokens // positions, tokens % positions


def _always(tokens, positions):
    """a model with 256 positions cannot read a window of 2,048: take the smaller of the two"""
    return 2048, tokens // 2048, tokens % 2048


def _with_the_rest(tokens, positions):
    """the rest is dropped: a last window that is shorter than the others would count as much as
    they do"""
    length = min(2048, positions)
    return length, -(-tokens // length), 0


# 11.4 two models on the same items
def _paired(a, b):  # bool [n], bool [n] -> (difference of accuracies, error)
    difference = b.double() - a.double()
    return difference.mean().item(), difference.std().item() / math.sqrt(len(a))


def _from_counts(a, b):
    n, changed, mean = len(a), (a != b).sum().item(), _paired(a, b)[0]
    return mean, math.sqrt((changed / n - mean**2) / (n - 1))


def _one_less_inside(a, b):
    """n - 1 goes into the factor before the root; the shares b / n and c / n keep their n"""
    n, changed, mean = len(a), (a != b).sum().item(), _paired(a, b)[0]
    return mean, math.sqrt((changed / (n - 1) - mean**2) / n)


def _two_errors(a, b):
    """that is the error for two different sets of items: both models answered the same ones, so
    take the differences"""
    p, q = a.double().mean().item(), b.double().mean().item()
    return q - p, math.sqrt((p * (1 - p) + q * (1 - q)) / (len(a) - 1))


def _one_error(a, b):
    """that is the error of one accuracy, not of a difference"""
    p, q = a.double().mean().item(), b.double().mean().item()
    return q - p, math.sqrt(q * (1 - q) / (len(a) - 1))


def _spread(a, b):
    """that is how much one item scatters: the mean of n items is sharper by the square root of n"""
    mean, stderr = _paired(a, b)
    return mean, stderr * math.sqrt(len(a))


def _only_discordant(a, b):
    """items on which both agree count too: they are differences of 0, and n counts all"""
    split = a != b
    return _paired(a[split], b[split])


def _a_minus_b(a, b):
    """the sign: b minus a"""
    return _paired(b, a)


# 11.5 which answer?
def _answers(logprobs, choices):  # list of [tokens], list of str -> (by sum, by sum per character)
    sums = _sums(logprobs)
    return sums.argmax().item(), (sums / _lengths(choices)).argmax().item()


def _sums(logprobs):
    return torch.stack([one.sum() for one in logprobs])


def _lengths(choices):  # the space in front is not counted
    return torch.tensor([len(choice) - 1 for choice in choices])


def _per_token(logprobs, choices):
    """acc_norm divides by characters, so that it does not depend on the tokenizer; that is the mean
    over tokens"""
    means = torch.stack([one.mean() for one in logprobs])
    return _answers(logprobs, choices)[0], means.argmax().item()


def _with_the_space(logprobs, choices):
    """the space that joins choice and context is not part of the choice: len(choice) - 1"""
    sums = _sums(logprobs)
    return sums.argmax().item(), (sums / (_lengths(choices) + 1)).argmax().item()


def _per_byte(logprobs, choices):
    """characters, not bytes: an é is one character and two bytes"""
    return _answers(logprobs, [choice.encode() for choice in choices])


def _times_length(logprobs, choices):
    """log-likelihoods are negative sums: divide by the length, do not multiply"""
    sums = _sums(logprobs)
    return sums.argmax().item(), (sums * _lengths(choices)).argmax().item()


def _lowest(logprobs, choices):
    """the likeliest answer has the highest log-likelihood, which is the least negative one"""
    return _answers([-one for one in logprobs], choices)


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


def _item(choices):  # log-probabilities by choice
    return [torch.tensor(values) for values in choices.values()], [*choices]


# Each case separates one wrong length: tokens, the space, bytes.
ITEMS = (
    _item({" a stone": [-1.0, -1.0], " in the garden": [-0.7, -0.8, -0.9]}),
    _item({" elephants": [-2.0, -1.2], " submarines and ships": [-4.0]}),
    _item({" ox": [-1.0], " oxen": [-1.8]}),
    _item({" cafés à crème": [-3.0], " two teacups here": [-2.2, -1.0]}),
)
EXERCISES = {
    "11.1": Exercise(
        _joined,
        LENGTHS,
        mistakes(_windows_alike, _weighted_mean, _mean_perplexity, _one_less, _mean_loss),
        right=(_token_by_token,),
        kind="warm-up",
        minutes=4,
    ),
    "11.2": Exercise(
        _units,
        ((40.0, 1000, 700, 4000), (12.5, 255, 190, 1100), (80.0, 64, 32, 300)),
        mistakes(_nats_per_byte, _scaled_perplexity, _words_over_tokens, _without_predictions),
        right=(_by_powers,),
        minutes=6,
    ),
    "11.3": Exercise(
        _windows,
        ((287645, 2048), (287645, 4096), (287645, 131072), (20000, 256)),
        mistakes(_published, _always, _with_the_rest),
        right=(_windows_by_division,),
        kind="find-the-bug",
        minutes=5,
    ),
    "11.4": Exercise(
        _paired,
        ((RIGHT, OTHER), (RIGHT, WORSE), (OTHER, WORSE)),
        mistakes(_two_errors, _one_error, _one_less_inside, _spread, _only_discordant, _a_minus_b),
        right=(_from_counts,),
        minutes=8,
    ),
    "11.5": Exercise(
        _answers,
        ITEMS,
        mistakes(_per_token, _with_the_space, _per_byte, _times_length, _lowest),
        right=(_by_list,),
        kind="stretch",
        minutes=10,
    ),
}
