"""Speed and likelihood of texts about items, written on one core: in 8 bits, in float32, with the full vocabulary.

    OMP_NUM_THREADS=1 python -m benchmarks.writing.run [--texts 64]

Uses the items of MovieLens-100K. Times are CPU times, so other load on the machine has little effect. The loss is that
of each text after its prompt under the full float32 model. Decoding is greedy, so one different word changes the rest.
"""

from __future__ import annotations

import argparse
import random
import time

import torch

from models.data.loading import load_dataset
from models.language.generation import answer, common, token_rows
from models.language.llm import LanguageModel
from models.language.writer import Writer
from models.systems.kar.written import item_prompts
from schemas.settings import load
from workers.data import movielens


@torch.no_grad()
def loss(llm: LanguageModel, prompts: list[str], texts: list[str]) -> float:
    """Return the mean loss of texts after their prompts, nats per token."""
    total, tokens = 0.0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        before, all_ids = token_rows(llm, [prompt, prompt + text])
        new = len(all_ids) - len(before)
        if new > 0:
            with llm.whole():
                logits = llm.causal(
                    input_ids=torch.tensor([all_ids]), use_cache=False, logits_to_keep=new + 1).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(
                logits.float(), torch.tensor(all_ids[-new:]), reduction="sum"))
            tokens += new
    return total / max(1, tokens)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="benchmarks.writing.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=64, help="number of texts per variant (%(default)s)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    settings = load()
    llm = LanguageModel.load(settings.llm, settings.home / "cache")
    texts = [text for text in load_dataset(movielens.fetch(settings.home)).texts if text]
    prompts = sorted(item_prompts(random.Random(0).sample(texts, min(args.texts, len(texts)))), key=len)
    rows = token_rows(llm, prompts)
    read = sum(map(len, rows)) - len(rows) * len(common(rows))
    before: list[str] | None = None
    print("| weights | ms per text | tokens/s, read and written | loss of the texts | same as in float32 |")
    print("|---|--:|--:|--:|--:|")
    for name in ("float32", "float32, all words", "int8"):
        writer = Writer(llm, name == "int8")
        if name == "float32, all words":
            writer.words = torch.arange(len(llm.tokenizer))
            writer._words = llm.causal.get_output_embeddings()  # type: ignore[operator]
        began = time.process_time()
        written = answer(writer, prompts)
        seconds = time.process_time() - began
        tokens = read + sum(map(len, token_rows(llm, written))) - len(written)
        before = before or written
        same = sum(old == new for old, new in zip(before, written, strict=True))
        print(f"| {name} | {1000 * seconds / len(prompts):.0f} | {tokens / seconds:.0f} | "
              f"{loss(llm, prompts, written):.2f} | {same} of {len(prompts)} |", flush=True)


if __name__ == "__main__":
    main()
