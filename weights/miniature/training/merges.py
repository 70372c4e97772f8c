"""The miniature's vocabulary, learned from its captions."""

import json
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from minibaret.models.tokenizer import WORD_END, split_like_clip


def learn_merges(texts: Iterable[str], size: int) -> list[tuple[str, str]]:
    """BPE merges for the texts, at most `size` of them, the most frequent first."""
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    split_like_clip(tokenizer)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + size, initial_alphabet=alphabet, end_of_word_suffix=WORD_END, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]][:size]
