"""Zero-shot tasks: the definition, and lm-evaluation-harness's numbers on the same items."""

import gzip
import json
import math
import sys
import tomllib
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from conftest import ROOT, tiny_opt

import sparselab as sl
from sparselab import SparselabError
from sparselab.__main__ import main
from sparselab.evaluation.tasks import TASKS, items, task_rows
from sparselab.evaluation.zeroshot import answers, loglikelihoods

LIMIT = 30
CONFIGURATIONS = {
    "boolq": "super_glue/boolq/default.yaml",
    "rte": "glue/rte/default.yaml",
    "hellaswag": "hellaswag/hellaswag.yaml",
    "winogrande": "winogrande/default.yaml",
    "arc_easy": "arc/arc_easy.yaml",
    "arc_challenge": "arc/arc_challenge.yaml",
    "piqa": "piqa/piqa.yaml",
    "openbookqa": "openbookqa/openbookqa.yaml",
    "lambada_openai": "lambada/lambada_openai.yaml",
}


@pytest.fixture(scope="module")
def mini():
    return sl.load("opt-mini")


@pytest.fixture
def folder(tmp_path):
    """A folder with two items of our own a task."""

    def write(task, *rows):
        (tmp_path / TASKS[task].file).write_text("".join(json.dumps(row) + "\n" for row in rows))

    question = {"query": "Question: What swims?", "choices": ["a fish", "a stone"], "gold": 0}
    for task in ("arc_easy", "arc_challenge"):
        write(task, question, {**question, "gold": 1})
    write(
        "boolq",
        {
            "query": "Passage: Fish swim.\nQuestion: do fish swim?",
            "choices": ["no", "yes"],
            "gold": 1,
        },
        question,
    )
    write(
        "openbookqa", {"query": "The sea is", "choices": ["salt water", "dry"], "gold": 0}, question
    )
    write(
        "piqa",
        {"query": "Question: open a door\n", "choices": ["push it", "eat it"], "gold": 0},
        question,
    )
    write(
        "winogrande",
        {
            "context_options": ["Ann met Eve and Ann", "Ann met Eve and Eve"],
            "continuation": "smiled.",
            "gold": 1,
        },
    )
    write(
        "lambada_openai",
        {"context": "He opened the", "continuation": "door"},
        {"context": "Up and", "continuation": "xy"},
    )
    (tmp_path / "rte-dev.tsv").write_text(
        'sentence1\tsentence2\tlabel\n"He said ""no""."\tHe spoke.\t0\nA.\tB.\t1\n'
    )
    lines = [
        "Sailing: A man stands. He waves. the boat",
        "2",
        "sinks.",
        "[substeps] flies.",
        "sails.",
        "sings.",
    ]
    with gzip.open(tmp_path / "hellaswag-val.txt.gz", "wt") as file:
        file.write(
            "\n".join(lines + ["Cooking: Boil it.", "0", "Eat.", "Go.", "Run.", "Sit."]) + "\n"
        )
    return tmp_path


def test_prompts_are_the_harness_s(folder):
    first = {task: items(task, 1, folder)[0] for task in TASKS}
    assert first["boolq"].requests == (
        ("Fish swim.\nQuestion: do fish swim?\nAnswer:", " no"),
        ("Fish swim.\nQuestion: do fish swim?\nAnswer:", " yes"),
    )
    assert first["rte"].requests[0] == (
        'He said "no".\nQuestion: He spoke. True or False?\nAnswer:',
        " True",
    )
    assert first["arc_easy"].requests[1] == ("Question: What swims?\nAnswer:", " a stone")
    assert first["openbookqa"].requests[0] == ("The sea is", " salt water")
    assert first["piqa"].requests[0] == ("Question: open a door\nAnswer:", " push it")
    assert first["winogrande"].requests == (
        ("Ann met Eve and Ann", " smiled."),
        ("Ann met Eve and Eve", " smiled."),
    )
    assert first["lambada_openai"].requests == (("He opened the", " door"),)
    assert first["hellaswag"].requests[1] == (
        "Sailing: A man stands. He waves. The boat",
        "  flies.",
    )
    assert first["hellaswag"].gold == 2 and len(items("hellaswag", None, folder)) == 2
    assert items("hellaswag", None, folder)[1].requests[0][0] == "Cooking: Boil it."


def test_the_log_likelihood_is_that_of_the_whole_text(mini):
    """One request at a time, by the definition; shared passes, padding and the cut on the left
    change nothing."""
    model, tokenizer = mini
    requests = [
        ("The old man went to the", " sea"),
        ("The old man went to the", " sea and the sky"),
        ("It ", "rained."),
        ("word " * 400, " end"),
        ("The old man went to the", " door"),
    ]
    for (context, continuation), (value, greedy) in zip(
        requests, loglikelihoods(model, tokenizer, requests, progress=False), strict=True
    ):
        ids = torch.tensor(tokenizer(context + continuation).input_ids)
        count = len(ids) - len(tokenizer(context.rstrip()).input_ids)
        with torch.no_grad():
            scores = model(ids[-257:-1][None]).logits[0].log_softmax(-1)[-count:]
        assert value == pytest.approx(scores.gather(1, ids[-count:, None]).sum().item(), abs=1e-4)
        assert greedy == bool((scores.argmax(-1) == ids[-count:]).all())
    assert loglikelihoods(model, tokenizer, []) == []


def test_the_table_says_how_sure_it_is(folder, mini):
    table = sl.zeroshot(*mini, folder=folder, progress=False).set_index("task")
    assert list(table.index) == list(TASKS) and table["items"].tolist() == [
        2,
        2,
        2,
        1,
        2,
        2,
        2,
        2,
        2,
    ]
    right = answers(*mini, "arc_easy", folder=folder, progress=False)
    assert right.correct.tolist().count(True) == 1  # the same question, both choices right once
    row = table.loc["arc_easy"]
    assert (row.accuracy, row.stderr, row.chance) == (0.5, pytest.approx(0.5), 0.5)
    assert table.accuracy_norm.notna().tolist() == [task.norm for task in TASKS.values()]
    last = answers(*mini, "lambada_openai", folder=folder, progress=False).loglikelihoods.sum()
    assert table.loc["lambada_openai"].perplexity == pytest.approx(
        math.exp(-sum(last) / 2), rel=1e-5
    )
    assert table.source.str.contains("sha256:").all() and table.model.eq("opt-mini").all()


def test_a_model_in_files_gets_the_same_table(folder, mini):
    """Read block by block, with the tokenizer that belongs to it."""
    expected = sl.zeroshot(*mini, folder=folder, progress=False)
    found = sl.zeroshot("opt-mini", folder=folder, progress=False)
    pd.testing.assert_frame_equal(found, expected, check_exact=True)
    options = {"folder": folder, "progress": False}
    found = answers("opt-mini", None, "piqa", offload="disk", device="cpu", **options)
    pd.testing.assert_frame_equal(found, answers(*mini, "piqa", **options))


def test_length_normalised_answers_divide_by_characters(folder, mini):
    for row, item in zip(
        answers(*mini, "hellaswag", folder=folder, progress=False).itertuples(),
        items("hellaswag", None, folder),
        strict=True,
    ):
        scores = [
            value / len(choice[1:])
            for value, (_, choice) in zip(row.loglikelihoods, item.requests, strict=True)
        ]
        assert row.correct_norm == (max(range(4), key=scores.__getitem__) == item.gold)


def test_what_is_missing_gets_a_sentence(folder, mini, monkeypatch):
    with pytest.raises(SparselabError, match="Did you mean 'piqa'"):
        sl.zeroshot(*mini, ["pica"], folder=folder)
    with pytest.raises(SparselabError, match="pass a list"):
        sl.zeroshot(*mini, "piqa", folder=folder)
    with pytest.raises(SparselabError, match="at least one item"):
        sl.zeroshot(*mini, ["piqa"], folder=folder, limit=0)
    with pytest.raises(SparselabError, match="came without a tokenizer"):
        sl.zeroshot(tiny_opt(), tasks=["piqa"], folder=folder)
    with pytest.raises(SparselabError, match="takes a model in memory, and 'opt-mini' is a name"):
        sl.zeroshot("opt-mini", tasks=["piqa"], harness=True)
    (folder / "piqa.jsonl").unlink()
    with pytest.raises(SparselabError, match=f"piqa.jsonl, which is not in {folder}"):
        sl.zeroshot(*mini, ["boolq", "piqa"], folder=folder)
    monkeypatch.delenv("SPARSELAB_DATA", raising=False)
    with pytest.raises(SparselabError, match="set SPARSELAB_DATA"):
        sl.zeroshot(*mini, ["piqa"])
    (folder / "boolq.jsonl").write_text('{"passage": "Fish swim."}\n')
    with pytest.raises(SparselabError, match="not written as the task boolq expects"):
        items("boolq", None, folder)
    (folder / "broken").mkdir()  # before the first task is scored
    for task in ("arc_easy", "boolq"):
        (folder / TASKS[task].file).rename(folder / "broken" / TASKS[task].file)
    monkeypatch.setattr("sparselab.evaluation.zeroshot._answers", lambda *_: pytest.fail("scored"))
    with pytest.raises(SparselabError, match="not written as the task boolq expects"):
        sl.zeroshot("opt-mini", tasks=["arc_easy", "boolq"], folder=folder / "broken")


@pytest.mark.parametrize(
    "task, content",
    [
        ("piqa", b""),
        ("piqa", b'{"query": "q", "choices": ["", "b"], "gold": 1}'),
        ("piqa", b'{"query": "caf\xe9"}'),
        ("piqa", b'{"query": "q", "choices": [], "gold": 0}'),
        ("piqa", b'{"query": "q", "choices": ["a", "b"], "gold": 2}'),
        ("hellaswag", b"not gzip"),
        ("hellaswag", gzip.compress(b"a\n0\n", mtime=0)[:-4]),
    ],
)
def test_a_broken_file_is_a_sentence(folder, mini, task, content):
    (folder / TASKS[task].file).write_bytes(content)
    with pytest.raises(SparselabError, match=f"not written as the task {task} expects"):
        sl.zeroshot(*mini, [task], folder=folder, progress=False)


def test_a_broken_weight_is_a_sentence(folder):
    model, tokenizer = sl.load("opt-mini")
    next(iter(sl.linears_of(model).values())).weight.data[0, 0] = math.nan
    with pytest.raises(SparselabError, match="log-likelihoods are not finite"):
        sl.zeroshot(model, tokenizer, ["piqa"], folder=folder, progress=False)


def test_what_does_not_fit_the_model_gets_a_sentence(mini):
    tokenizer, small = mini[1], tiny_opt(vocab_size=4096)
    with pytest.raises(SparselabError, match="fit the 64 positions"):
        loglikelihoods(small, tokenizer, [("A", " b" * 90)])
    with pytest.raises(SparselabError, match="come after a context"):
        loglikelihoods(small, tokenizer, [("", "")])
    with pytest.raises(SparselabError, match=r"model.eval"):
        loglikelihoods(small.train(), tokenizer, [("A", " b")])


def test_from_a_shell(folder, capsys):
    options = "--tasks piqa,lambada_openai --limit 2 --folder".split()
    assert main(["zeroshot", "opt-mini", *options, str(folder)]) == 0
    printed = capsys.readouterr().out
    assert "piqa" in printed and "lambada_openai" in printed and "stderr" in printed
    assert main(["zeroshot", "opt-mini", "--stream", *options, str(folder)]) == 0
    assert capsys.readouterr().out == printed
    assert main(["zeroshot", "--tasks", "pica", "--folder", str(folder)]) == 1


# --- the harness itself
# --------------------------------------------------------------------------------------------


def published(task, row):
    """A row with the columns of the published data set, from which the harness makes its own
    prompts."""
    if task == "boolq":
        passage, question = row["query"].removeprefix("Passage: ").rsplit("\nQuestion: ", 1)
        return {"passage": passage, "question": question.removesuffix("?"), "label": row["gold"]}
    if task in ("arc_easy", "arc_challenge", "openbookqa"):
        question = row["query"].removeprefix("Question: ")
        return {
            "question": question,
            "question_stem": question,
            "answerKey": "ABCDE"[row["gold"]],
            "choices": {"text": row["choices"], "label": list("ABCDE"[: len(row["choices"])])},
        }
    if task == "piqa":
        goal = row["query"].removeprefix("Question: ").removesuffix("\n")
        return {
            "goal": goal,
            "sol1": row["choices"][0],
            "sol2": row["choices"][1],
            "label": row["gold"],
        }
    if task == "winogrande":
        first, second = row["context_options"]
        same = next(k for k in range(len(first)) if first[k : k + 1] != second[k : k + 1])
        return {
            "sentence": f"{first[:same]}_ {row['continuation']}",
            "option1": first[same:],
            "option2": second[same:],
            "answer": str(row["gold"] + 1),
        }
    if task == "hellaswag":
        begin = (
            row["context"].rfind(". ") + 2
            if not row["context"].endswith(".")
            else len(row["context"])
        )
        label, rest = row["context"][:begin].split(": ", 1)
        return {
            "activity_label": label,
            "ctx_a": rest.strip(),
            "ctx_b": row["context"][begin:],
            "endings": row["endings"],
            "label": row["gold"],
        }
    return (
        {**row, "label": int(row["label"])}
        if task == "rte"
        else {"text": f"{row['context']} {row['continuation']}"}
    )


def harness_task(task, shared_data, folder):
    """The harness's own configuration of a task, reading our items instead of the Hub's."""
    import lm_eval.tasks
    import yaml

    rows = [
        published(task, row)
        for row in task_rows(shared_data / "zeroshot" / TASKS[task].file, LIMIT)
    ]
    (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = Path(lm_eval.tasks.__file__).parent / CONFIGURATIONS[task]
    split = "test" if "test_split: test" in own.read_text() else "validation"
    config = {
        "include": str(own),
        "dataset_path": "json",
        "dataset_name": None,
        "training_split": None,
        "validation_split": None,
        "test_split": None,
        f"{split}_split": split,
        "dataset_kwargs": {
            "data_files": {split: str(folder / f"{task}.jsonl")},
            "cache_dir": str(folder / "cache"),
        },
    }
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(config))
    return str(folder / f"{task}.yaml")


@pytest.fixture(scope="module")
def harness():
    """lm-eval without the minute that it takes to read its own thousands of configurations."""
    evaluator = pytest.importorskip(
        "lm_eval.evaluator", reason="needs lm-eval: pip install -e '.[eval]'"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            evaluator, "TaskManager", partial(evaluator.TaskManager, include_defaults=False)
        )
        yield evaluator


@pytest.fixture(scope="module")
def theirs(harness, mini, shared_data, tmp_path_factory):
    """What the harness finds for all tasks: samples by task."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("harness")
    paths = [harness_task(task, shared_data, folder) for task in TASKS]
    return harness.simple_evaluate(
        HFLM(pretrained=mini[0], tokenizer=mini[1]), tasks=paths, bootstrap_iters=0
    )["samples"]


@pytest.mark.needs_data
@pytest.mark.parametrize("task", TASKS)
def test_equal_to_the_harness_on_the_same_items(task, theirs, mini, shared_data):
    """Its own prompts, tokenisation and metrics, item by item; opt-mini's 256 positions cut BoolQ's
    and RTE's contexts."""
    samples = sorted(theirs[task], key=lambda sample: sample["doc_id"])
    ours = answers(*mini, task, limit=LIMIT, folder=shared_data / "zeroshot", progress=False)
    assert len(samples) == len(ours) == LIMIT
    for sample, row, item in zip(
        samples, ours.itertuples(), items(task, LIMIT, shared_data / "zeroshot"), strict=True
    ):
        assert tuple(tuple(arguments[:2]) for arguments in sample["arguments"]) == item.requests
        assert row.loglikelihoods == pytest.approx(
            [float(answer[0][0]) for answer in sample["resps"]], abs=1e-3
        )
        assert row.correct == bool(sample["acc"]) and row.correct_norm == bool(
            sample.get("acc_norm", row.correct_norm)
        )


@pytest.mark.needs_data
def test_the_harness_on_a_live_model_gives_the_same_table(harness, mini, shared_data, tmp_path):
    paths = [harness_task(task, shared_data, tmp_path) for task in ("piqa", "lambada_openai")]
    table = sl.zeroshot(*mini, paths, limit=8, harness=True)
    ours = sl.zeroshot(
        *mini, ["piqa", "lambada_openai"], limit=8, folder=shared_data / "zeroshot", progress=False
    )
    columns = ["items", "accuracy", "stderr", "accuracy_norm", "stderr_norm", "perplexity"]
    assert (
        table.task.tolist() == ours.task.tolist() and table.source.str.startswith("lm-eval").all()
    )
    assert table[columns].to_numpy() == pytest.approx(
        ours[columns].to_numpy(), rel=1e-4, nan_ok=True
    )
    with pytest.raises(SparselabError, match="lm-eval could not do no_such_task"):
        sl.zeroshot(*mini, ["no_such_task"], harness=True)


def test_without_the_harness_a_sentence_says_how_to_get_it(mini, monkeypatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    (extra,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["eval"]
    with pytest.raises(SparselabError, match=f"pip install '{extra}'"):
        sl.zeroshot(*mini, ["piqa"], harness=True)


def test_no_item_of_the_tasks_is_in_the_project():
    assert not [file for task in TASKS.values() for file in Path(ROOT / "data").rglob(task.file)]
