"""The exercises of notebook 11."""

import math
from collections.abc import Callable
from typing import Any

import torch
from matplotlib.figure import Figure

from ... import viz
from .checking import Exercise, mistakes


# 11.1 perplexity from windows of unequal length
def text_perplexity(losses, counts):
    """Of a whole text, from the mean losses [k] of its pieces and their predictions [k]."""
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
    return text_perplexity(losses, counts - 1)


def _mean_loss(losses, counts):
    """that is the mean loss in nats: perplexity is its exponential"""
    return math.log(text_perplexity(losses, counts))


# 11.2 one loss in three units
def units(perplexity, predictions, words, size):
    """Perplexity of a word and bits per byte, from the perplexity of a token and the counts of
    predictions, words and bytes of one text."""
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
    return perplexity * predictions / words, units(perplexity, predictions, words, size)[1]


def _words_over_tokens(perplexity, predictions, words, size):
    """upside down: there are fewer words than tokens, so a word costs more than a token"""
    return perplexity ** (words / predictions), units(perplexity, predictions, words, size)[1]


def _without_predictions(perplexity, predictions, words, size):
    """the mean loss belongs to a token: multiply by the predictions before you divide by words and
    bytes"""
    return math.exp(math.log(perplexity) / words), math.log2(perplexity) / size


# 11.3 the error over articles
def over_articles(values, article):
    """The mean of the windows' values [k] and its standard error over articles; article [k] says
    which one each window comes from."""
    means = _article_means(values, article)
    return values.mean().item(), means.std().item() / math.sqrt(len(means))


def _article_means(values, article):
    return torch.stack([values[article == each].mean() for each in article.unique()])


def _over_articles_by_sums(values, article):
    _, place = article.unique(return_inverse=True)
    count = torch.bincount(place)
    means = torch.bincount(place, values.double()) / count
    return values.mean().item(), (means.var() / len(means)).sqrt().item()


def _over_windows(values, article):
    """that is the error over windows: it takes the windows of one article for independent. Average
    within each article first"""
    return values.mean().item(), values.std().item() / math.sqrt(len(values))


def _by_number_of_windows(values, article):
    """the means of articles are as many as there are articles: divide their deviation by the root
    of that number, not of the number of windows"""
    means = _article_means(values, article)
    return values.mean().item(), means.std().item() / math.sqrt(len(values))


def _deviation_of_articles(values, article):
    """that is how far one article scatters: the mean of m articles is sharper by the root of m"""
    return values.mean().item(), _article_means(values, article).std().item()


def _sums_of_articles(values, article):
    """you added up each article's windows: an article with more windows would look harder. Take
    means"""
    sums = torch.stack([values[article == each].sum() for each in article.unique()])
    return values.mean().item(), sums.std().item() / math.sqrt(len(sums))


def _within_articles(values, article):
    """that is the scatter of the windows within their articles, which is what averaging removes:
    the error comes from the scatter between the articles' means"""
    inside = torch.stack(
        [
            (values[article == a] - values[article == a].mean()).square().sum()
            for a in article.unique()
        ]
    )
    return values.mean().item(), math.sqrt(inside.sum().item() / len(values)) / len(inside) ** 0.5


# 11.4 how long are the windows?
def windows_of(tokens, positions):
    """Length and number of the windows of so many tokens, and how many are left over, for a model
    that can read `positions` tokens."""
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


# 11.6 two models on the same items
def accuracy_gap(a, b):
    """Difference of two accuracies and its paired standard error, from verdicts a, b bool [n] on
    the same items."""
    difference = b.double() - a.double()
    return difference.mean().item(), difference.std().item() / math.sqrt(len(a))


def _from_counts(a, b):
    n, changed, mean = len(a), (a != b).sum().item(), accuracy_gap(a, b)[0]
    return mean, math.sqrt((changed / n - mean**2) / (n - 1))


def _one_less_inside(a, b):
    """n - 1 goes into the factor before the root; the shares b / n and c / n keep their n"""
    n, changed, mean = len(a), (a != b).sum().item(), accuracy_gap(a, b)[0]
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
    mean, stderr = accuracy_gap(a, b)
    return mean, stderr * math.sqrt(len(a))


def _only_discordant(a, b):
    """items on which both agree count too: they are differences of 0, and n counts all"""
    split = a != b
    return accuracy_gap(a[split], b[split])


def _a_minus_b(a, b):
    """the sign: b minus a"""
    return accuracy_gap(b, a)


# 11.5 which answer?
def answers(logprobs, choices):
    """The places of the chosen answers, by sum and by sum per character, from the log-probabilities
    [tokens] of each choice and the choices with the blank in front."""
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
    return answers(logprobs, choices)[0], means.argmax().item()


def _with_the_space(logprobs, choices):
    """the space that joins choice and context is not part of the choice: len(choice) - 1"""
    sums = _sums(logprobs)
    return sums.argmax().item(), (sums / (_lengths(choices) + 1)).argmax().item()


def _per_byte(logprobs, choices):
    """characters, not bytes: an é is one character and two bytes"""
    return answers(logprobs, [choice.encode() for choice in choices])


def _times_length(logprobs, choices):
    """log-likelihoods are negative sums: divide by the length, do not multiply"""
    sums = _sums(logprobs)
    return sums.argmax().item(), (sums * _lengths(choices)).argmax().item()


def _lowest(logprobs, choices):
    """the likeliest answer has the highest log-likelihood, which is the least negative one"""
    return answers([-one for one in logprobs], choices)


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
WINDOWS = (
    (torch.tensor([3.0, 3.2, 4.1, 4.3, 2.7]), torch.tensor([0, 0, 1, 1, 2])),
    (torch.tensor([0.2, 0.1, 0.3, 0.0, 0.1, 0.4]), torch.tensor([5, 5, 5, 7, 9, 9])),
    (torch.tensor([1.0, 2.5, 1.5]), torch.tensor([1, 2, 1])),
)


def drawn(title: str, *names: str) -> Callable[[Any, Any], Figure]:
    """How to draw a wrong answer of a few numbers: for each number, a bar for yours and one for the
    expected."""

    def draw(mine: Any, expected: Any) -> Figure:
        pairs = [each if isinstance(each, tuple) else (each,) for each in (mine, expected)]
        with viz.style():
            figure = Figure(figsize=(3.2 * max(len(names), 1.5), 1.9))
            figure.suptitle(title)
            axes = figure.subplots(1, len(names), squeeze=False)[0]
            for axis, name, *values in zip(axes, names, *pairs, strict=True):
                values = [float(value) for value in values]
                axis.barh([0, 1], values, color=["#D55E00", "#0072B2"], height=0.6)
                axis.bar_label(axis.containers[0], fmt="%.4g", padding=3)
                axis.set(yticks=[0, 1], yticklabels=["yours", "expected"], xlabel=name)
                axis.axvline(0, color="black", linewidth=0.8)
                axis.locator_params(axis="x", nbins=4)
                axis.margins(x=0.3)
                if not any(values):
                    axis.set_xlim(0, 1)
                axis.invert_yaxis()
                axis.grid(False)
        return figure

    return draw


EXERCISES = {
    "11.1": Exercise(
        text_perplexity,
        LENGTHS,
        mistakes(_windows_alike, _weighted_mean, _mean_perplexity, _one_less, _mean_loss),
        right=(_token_by_token,),
        kind="warm-up",
        minutes=3,
        draw=drawn("the perplexity of a text", "perplexity"),
        quiet=True,
    ),
    "11.2": Exercise(
        units,
        ((40.0, 1000, 700, 4000), (12.5, 255, 190, 1100), (80.0, 64, 32, 300)),
        mistakes(_nats_per_byte, _scaled_perplexity, _words_over_tokens, _without_predictions),
        right=(_by_powers,),
        minutes=4,
        draw=drawn("one loss in other units", "perplexity of a word", "bits per byte"),
        quiet=True,
    ),
    "11.3": Exercise(
        over_articles,
        WINDOWS,
        mistakes(
            _over_windows,
            _by_number_of_windows,
            _deviation_of_articles,
            _sums_of_articles,
            _within_articles,
        ),
        right=(_over_articles_by_sums,),
        minutes=6,
        draw=drawn("windows of a few articles", "mean", "standard error"),
        quiet=True,
    ),
    "11.4": Exercise(
        windows_of,
        ((287645, 2048), (287645, 4096), (287645, 131072), (20000, 256)),
        mistakes(_published, _always, _with_the_rest),
        right=(_windows_by_division,),
        kind="find-the-bug",
        minutes=4,
        draw=drawn("how a text is cut", "tokens in a window", "windows", "tokens dropped"),
        quiet=True,
    ),
    "11.5": Exercise(
        answers,
        ITEMS,
        mistakes(_per_token, _with_the_space, _per_byte, _times_length, _lowest),
        right=(_by_list,),
        minutes=6,
        draw=drawn("the place of the answer", "by sum", "by sum per character"),
        quiet=True,
    ),
    "11.6": Exercise(
        accuracy_gap,
        ((RIGHT, OTHER), (RIGHT, WORSE), (OTHER, WORSE)),
        mistakes(_two_errors, _one_error, _one_less_inside, _spread, _only_discordant, _a_minus_b),
        right=(_from_counts,),
        minutes=4,
        draw=drawn("two models on the same items", "difference", "standard error"),
        quiet=True,
    ),
}
