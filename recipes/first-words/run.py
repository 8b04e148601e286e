"""First words: from this machine's own Python sources to the model that ships with the package.

    python recipes/first-words/run.py

Four chapters: the corpus, the tokenizer, the training, the shipped files. Interrupted, it goes on where it was when it
is started again; runs/first-words holds all that it makes on the way.
"""

from __future__ import annotations

import os

# Threads that wait for each other should sleep, not spin: on a busy machine spinning costs five times the speed.
# It has to be said before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import shutil
import sys
from pathlib import Path

import torch
from corpus import HELD_OUT, read_corpus, standard_library, write_manifest
from make_tokenizer import train_tokenizer
from model import CONFIG, SAMPLE_LENGTH

from narrows.checkpoints.save import save_network
from narrows.errors import NarrowsError
from narrows.model.network import Network
from narrows.text.tokenizer import Tokenizer
from narrows.training.batches import Documents
from narrows.training.loop import Settings, train

REPOSITORY = Path(__file__).resolve().parents[2]

SETTINGS = Settings(
    steps=420,
    passes_per_step=4,
    rows_per_pass=2048,
    sample_length=SAMPLE_LENGTH,
    learning_rate=4e-3,
    final_learning_rate=2e-4,
    warm_up_steps=20,
    cosine_from=0.3,
    rounded_from=0.8,
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the model that ships with the package.")
    parser.add_argument("--work", type=Path, default=REPOSITORY / "runs" / "first-words", help="folder of the run")
    parser.add_argument(
        "--destination", type=Path, default=REPOSITORY / "src" / "narrows" / "embedded", help="where the model goes"
    )
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)

    print("1. The corpus")
    sources = read_corpus(standard_library())
    write_manifest(sources, Path(__file__).with_name("corpus.json"))
    training = [source.text for source in sources if source.path not in HELD_OUT]
    held_out = [source.text for source in sources if source.path in HELD_OUT]
    print(f"   {len(training)} files to learn from, {len(held_out)} to be measured on")

    print("2. The tokenizer")
    if not (work / "tokenizer.json").exists():
        train_tokenizer(training, work)
    tokenizer = Tokenizer.from_directory(work)
    tokenizer.check_fits(CONFIG, "recipes/first-words/model.py")
    documents, held_out_documents = Documents(tokenizer, training), Documents(tokenizer, held_out)
    print(f"   {len(documents.tokens):,} tokens of {sum(map(len, training)) / len(documents.tokens):.2f} characters")

    print("3. The training")
    torch.manual_seed(SETTINGS.seed)
    network = Network(CONFIG)
    network.initialise()
    train(network, documents, held_out_documents, SETTINGS, work)

    print("4. The shipped files")
    finished = work / "model"
    shutil.rmtree(finished, ignore_errors=True)
    save_network(network, finished, precision="official", companions=work)
    shutil.rmtree(arguments.destination, ignore_errors=True)
    shutil.copytree(finished, arguments.destination)
    size = sum(file.stat().st_size for file in arguments.destination.iterdir())
    print(f"   {arguments.destination}: {size:,} bytes")


if __name__ == "__main__":
    try:
        main()
    except NarrowsError as error:
        sys.exit(str(error))
