"""Train opt-mini, the OPT model that ships beside this file. CPU or GPU; stop it at any time and
run it again to go on.

    python data/opt-mini/train.py BOOKS.txt[.xz] HELDOUT.txt[.xz] --init FOLDER --steps 5000

Schedule: warm-up, constant, then linear to zero over the last 30 % of `--steps`
(warmup-stable-decay), so that a run may be lengthened at any point before its decay and still
equals a run that was planned that long. The windows of step k depend on the seed and on k alone: an
interrupted run ends with the same weights as an unbroken one on the same machine. Every other
window begins with </s>: the model knows both the start of a text and the papers' windows cut at any
place.
"""

import argparse
import lzma
import math
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import OPTConfig, OPTForCausalLM

HERE = Path(__file__).parent
WINDOW, WARMUP, DECAY, BOS = 256, 100, 0.3, 2
CARD = """# opt-mini

`OPTForCausalLM` (ReLU, biases, learned positions, pre-norm): 8 blocks, width 256, FFN 1,024, 8 heads, context 256,
byte-level BPE of 4,096 entries, {parameters:.1f} million parameters, fp16 safetensors. Made for sparselab, to be pruned; it
writes simple sentences and knows nothing.

- **Training**: {steps} steps of {batch} x 256 tokens ({million:.1f} million), begun {init}; AdamW, peak learning
  rate {peak}, constant, then linear to zero over the last 30 %. `train.py` is the recipe and wrote this card.
- **Text**: public-domain English books (in the USA), whole books held out. Every other window began with `</s>` (id 2).
- **Held-out perplexity** (fp16 weights, windows of 256 tokens that do not overlap, no leading `</s>`, the papers'
  definition): {whole:.2f} on all {windows} windows, {first:.2f} on the first 64.
- **Limits**: no instruction, no facts, the views and the language of 19th-century fiction. Licence Apache-2.0.
"""  # noqa: E501


def encode(path: Path, cache: Path) -> np.ndarray:
    """Token ids of a whole text, uint16 [n], cached beside the checkpoints; encoded in parts of 1
    MB to bound memory."""
    if not cache.exists():
        opener = lzma.open if path.suffix == ".xz" else open
        text = opener(path, "rt", encoding="utf8").read()
        tokenizer = Tokenizer.from_file(str(HERE / "tokenizer.json"))
        parts = [text[i : i + 1_000_000] for i in range(0, len(text), 1_000_000)]
        np.save(
            cache,
            np.concatenate(
                [
                    np.array(e.ids, dtype=np.uint16)
                    for e in tokenizer.encode_batch(parts, add_special_tokens=False)
                ]
            ),
        )
    return np.load(cache)


def new_model() -> OPTForCausalLM:
    """8 blocks of width 256; residual branches start small (GPT-2's rule)."""
    model = OPTForCausalLM(
        OPTConfig(
            vocab_size=4096,
            hidden_size=256,
            ffn_dim=1024,
            num_hidden_layers=8,
            num_attention_heads=8,
            word_embed_proj_dim=256,
            max_position_embeddings=WINDOW,
            dropout=0.0,
            attention_dropout=0.0,
            layerdrop=0.0,
            bos_token_id=BOS,
            eos_token_id=BOS,
            pad_token_id=1,
        )
    )
    for name, weight in model.named_parameters():
        if name.endswith(("out_proj.weight", "fc2.weight")):
            weight.data.div_(math.sqrt(2 * 8))
    return model


def batch(ids: np.ndarray, step: int, size: int, seed: int) -> torch.Tensor:
    """Windows of one step, LongTensor [size, WINDOW]."""
    starts = np.random.default_rng([seed, step]).integers(0, len(ids) - WINDOW, size)
    windows = torch.from_numpy(np.stack([ids[s : s + WINDOW] for s in starts]).astype(np.int64))
    windows[::2, 0] = BOS
    return windows


def rate(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step: up over WARMUP steps, level, down to zero over the last DECAY of the
    run."""
    return peak * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


@torch.no_grad()
def heldout_perplexity(model, ids: np.ndarray, windows: int, device: str) -> float:
    """exp of the mean loss over the first windows of the held-out books, cut as the papers cut them
    (no </s>)."""
    model.eval()
    x = torch.from_numpy(ids[: windows * WINDOW].astype(np.int64)).view(-1, WINDOW).to(device)
    loss = torch.stack([model(part, labels=part).loss.float() for part in x.split(16)]).mean()
    model.train()
    return math.exp(loss)


def save(folder: Path, step: int, model, optimizer) -> None:
    """Checkpoint in one rename: an interrupted save leaves the previous one whole."""
    part = folder / "checkpoint.part"
    torch.save(
        {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, part
    )
    part.replace(folder / "checkpoint.pt")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("books", type=Path)
    parser.add_argument("heldout", type=Path)
    parser.add_argument(
        "--init", type=Path, help="begin from this model folder instead of from random weights"
    )
    parser.add_argument(
        "--history",
        default="an earlier checkpoint",
        help="what the model of --init is, for the card",
    )
    parser.add_argument(
        "--work", type=Path, default=Path("build/opt-mini"), help="checkpoints, token cache and log"
    )
    parser.add_argument(
        "--steps", type=int, default=120_000, help="of batch x 256 tokens; 120,000 is 490 million"
    )
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument(
        "--peak", type=float, default=1.5e-3, help="learning rate of the level part"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    args.work.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, held = (
        encode(args.books, args.work / "train.npy"),
        encode(args.heldout, args.work / "heldout.npy"),
    )
    torch.manual_seed(args.seed)
    model = (
        OPTForCausalLM.from_pretrained(args.init, dtype=torch.float32) if args.init else new_model()
    )
    model.config.use_cache = False
    model.to(device).train()
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer, first = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True), 0
    if (args.work / "checkpoint.pt").exists():
        state = torch.load(args.work / "checkpoint.pt", map_location=device)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]

    train_steps(model, optimizer, train, held, first, args, device)
    finish(model, held, args, device)


def train_steps(
    model, optimizer, train: np.ndarray, held: np.ndarray, first: int, args, device: str
) -> None:
    """From step `first` to the end, with a checkpoint and a line every 100 steps."""
    started = time.time()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step, args.steps, args.peak)
        x = batch(train, step, args.batch, args.seed).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(x, labels=x).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 100 == 0:
            speed = (step + 1 - first) * x.numel() / (time.time() - started)
            line = f"step {step + 1} of {args.steps}: loss {loss.item():.3f}, {speed:,.0f} tokens/s"
            if (step + 1) % 500 == 0:
                perplexity = heldout_perplexity(model, held, 64, device)
                line += f", held-out perplexity (first 64 windows) {perplexity:.2f}"
            print(line, flush=True)
            save(args.work, step + 1, model, optimizer)


def finish(model, held: np.ndarray, args, device: str) -> None:
    """Write the model folder that ships: fp16 weights, tokenizer, this script, and the card with
    what was measured."""
    model.half().save_pretrained(args.work / "model")
    for name in ("tokenizer.json", "tokenizer_config.json", "train.py"):
        shutil.copy(HERE / name, args.work / "model")
    windows = len(held) // WINDOW
    card = CARD.format(
        steps=args.steps,
        batch=args.batch,
        peak=args.peak,
        windows=windows,
        million=args.steps * args.batch * WINDOW / 1e6,
        parameters=model.num_parameters() / 1e6,
        init=f"from {args.history}" if args.init else "from random weights",
        whole=heldout_perplexity(model.float(), held, windows, device),
        first=heldout_perplexity(model, held, 64, device),
    )
    (args.work / "model" / "README.md").write_text(card)
    print(card)


if __name__ == "__main__":
    main()
