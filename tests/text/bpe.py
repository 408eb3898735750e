"""A small byte-level BPE with Llama 3's split and Llama 3.2's chat format, made in the tests."""

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gp_virl.text.prompts import BRIEF, FULL, SLOTS
from gp_virl.text.template import IMAGE
from gp_virl.text.tokenizer import SPECIAL

LLAMA_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# As Llama 3.2's: it trims contents, and opens with a system message of its own that has a date.
LLAMA_TEMPLATE = """\
{{- bos_token }}{%- if not date_string is defined %}
{%- set date_string = strftime_now("%d %b %Y") %}{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Cutting Knowledge Date: December 2023\n" }}{{- "Today Date: " + date_string + "\n\n" }}
{{- "<|eot_id|>" }}{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim }}
{{- '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""

# As Llama 3.2 Vision's: contents may be parts, and with an image there is no system message.
LLAMA_VISION_TEMPLATE = """\
{{- bos_token }}{%- set seen = namespace(image=false) %}
{%- for message in messages %}{%- for part in message['content'] %}
{%- if part['type'] == 'image' %}{%- set seen.image = true %}{%- endif %}
{%- endfor %}{%- endfor %}{%- if not seen.image %}
{{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
{{- "Today Date: " + date_string + "\n\n<|eot_id|>" }}{%- endif %}{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
{%- if message['content'] is string %}{{- message['content'] }}{%- else %}
{%- for part in message['content'] %}
{{- '<|image|>' if part['type'] == 'image' else part['text'] }}{%- endfor %}{%- endif %}
{{- '<|eot_id|>' }}{%- endfor %}{%- if add_generation_prompt %}
{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"""


def llama_like(
    split: str = LLAMA_SPLIT, template: str | None = LLAMA_TEMPLATE, special: tuple = SPECIAL
) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(split), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        min_frequency=1,
        special_tokens=list(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    numbers = [f"{a} {b}, {c}{d}" for a in range(120) for b in (a, "K") for c in "AJ" for d in "Q."]
    texts = [getattr(wording, name) for wording in (BRIEF, FULL) for name in SLOTS]
    core.train_from_iterator([*texts, *numbers], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=special[0],
        eos_token=special[-1] if "<|eot_id|>" not in special else "<|eot_id|>",
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = template
    return tokenizer


def llama_vision_like() -> PreTrainedTokenizerFast:
    return llama_like(template=LLAMA_VISION_TEMPLATE, special=(*SPECIAL, IMAGE))
