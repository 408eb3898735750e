"""Tokenizers: any Hugging Face directory, or a tiny one trained here on the project's own texts.

The tiny tokenizer is a byte-level BPE with Llama 3's special tokens and chat format. It keeps card
symbols, numbers and operators apart, and makes each stretch of `brief` boilerplate one token, so
that a first turn is under 70 tokens.
"""

import itertools
import json
import random
import re
from collections.abc import Iterator, Sequence

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from gp_virl.text.prompts import BRIEF, FULL, PICTURED, SLOTS, Wording
from gp_virl.text.template import IMAGE

TINY = "tiny"
TINY_VOCABULARY = 512
SPECIAL = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|python_tag|>",
    "<|finetune_right_pad_id|>",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{{ '<|image|>' if part['type'] == 'image' else part['text'] | trim }}"
    "{% endfor %}{% endif %}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
WHOLE_NUMBERS = ("10", "11", "12", "13", "24")  # other numbers are digits
ROLES = ("system", "user", "assistant")
PHRASE_WEIGHT = 1000  # phrases are merged before any other text


def load(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer 'tiny', or that of a directory (or hub name) that AutoTokenizer can read.

    ValueError when there is none, or when it has no chat template.
    """
    if name_or_path == TINY:
        return tiny()
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"no tokenizer at {name_or_path!r}: give {TINY!r} or a directory with the files of a "
            f"Hugging Face tokenizer (tokenizer.json, tokenizer_config.json). {error}"
        ) from error
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer at {name_or_path!r} has no chat template: put a chat_template.jinja "
            "into its directory (instruction-tuned models come with one)"
        )
    return tokenizer


def head_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """How many ids a model can say: all but the image token, if that is the last one."""
    ids = tokenizer.get_vocab()
    rows = max(ids.values()) + 1
    return rows - 1 if ids.get(IMAGE) == rows - 1 else rows


def tiny() -> PreTrainedTokenizerFast:
    """The project's own tokenizer, at most 512 entries; the same one every time."""
    return trained(_pattern(), _texts(), TINY_VOCABULARY)


def trained(
    pattern: str, texts: Iterator[str], size: int, whole: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A byte-level BPE of at most `size` entries with Llama 3's special tokens and chat format.

    `pattern` is what is never merged with its neighbours, `texts` the corpus. Texts that are
    `whole` and match the pattern become one token each, beyond `size`, without the entries that
    merging them would take.
    """
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    if whole:
        core.model = _with_entries(core, whole)
    # The last entry, as in Llama 3.2 Vision: the output head has no row for it.
    core.add_special_tokens([IMAGE])
    begin = SPECIAL[0]
    core.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A",
        pair=f"{begin} $A {begin} $B",
        special_tokens=[(begin, core.token_to_id(begin))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=begin,
        eos_token="<|eot_id|>",
        pad_token="<|finetune_right_pad_id|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )


def _with_entries(core: Tokenizer, texts: Sequence[str]) -> models.BPE:
    """The tokenizer's model with an entry for each of the texts, which is used without merging."""
    model = json.loads(core.to_str())["model"]
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str
    vocabulary = dict(model["vocab"])
    for text in texts:
        vocabulary.setdefault(spell(text)[0][0], len(vocabulary))
    merges = [tuple(pair) for pair in model["merges"]]
    return models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True)


def _phrases(wording: Wording) -> list[str]:
    """Texts that are one token each."""
    return sorted({"\n\n", *wording.text_literals(), *ROLES}, key=lambda t: (-len(t), t))


def _pattern() -> str:
    """What the pre-tokenizer isolates, in order of preference; the rest stays in runs."""
    whole = "|".join(WHOLE_NUMBERS)
    card = r"[AJQK](?!\p{L})"
    return "|".join(
        [
            *(re.escape(phrase) for phrase in _phrases(BRIEF)),
            rf"(?<!\d)(?:{whole})(?!\d)|\d",
            rf"(?<!\p{{L}}){card}",
            r"[-+*/()=]",
            rf" (?={card}|\d)",  # the blank before a card or a number stands alone
            r" ?\p{L}+",
        ]
    )


def _texts() -> Iterator[str]:
    """The corpus: phrases and whole numbers, the wordings, and replies in the expert's form.

    What is said beside a picture is left out: the same tokens serve with pictures and without.
    """
    for phrase in [*_phrases(BRIEF), *WHOLE_NUMBERS]:
        yield from itertools.repeat(phrase, PHRASE_WEIGHT)
    for wording in (BRIEF, FULL):
        for name in (name for name in SLOTS if name != PICTURED):
            yield from itertools.repeat(getattr(wording, name), 2)
    draw = random.Random(0)
    for _ in range(200):
        values = [str(draw.randint(1, 13)) for _ in range(4)]
        a, b, c, d = values
        reply = BRIEF.reply.replace("{cards}", BRIEF.reply_cards_separator.join(values))
        reply = reply.replace("{numbers}", BRIEF.reply_numbers_separator.join(values))
        reply = reply.replace("{formula}", f"({a}-{b})*{c}+{d}/{a}").replace("{target}", "24")
        yield reply
