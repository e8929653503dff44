"""Write the files of the embedded model that are not weights: tokenizer, configs, template.

    python training/make_tokenizer.py

The tokenizer is a byte-level BPE with Qwen's pre-tokenizer pattern and special tokens, trained on
the packaged workload's questions and answers, those of the training scenes, and a short bilingual
vocabulary, so that it encodes any UTF-8 text. The model's shape is a Qwen3-VL of about eight
million parameters.
"""

from __future__ import annotations

import json
from pathlib import Path

from scenes import ask, generator, scene
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
OUT = ROOT / "qvl_lab" / "assets" / "tiny"
VOCABULARY = 2048
SPECIAL = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n"
    "{% if message.content is string %}{{ message.content }}{% else %}"
    "{% for part in message.content %}"
    "{% if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "system user assistant image picture photo document receipt chart scene texture icon table "
    "text code number total price amount date value largest smallest left right top bottom "
    "center width red green blue yellow orange purple black white grey pink brown cyan circle "
    "square triangle star rectangle pentagon cross ring describe this image in detail one short "
    "sentence how many what which where is are the of on in and colour color shape read locate "
    "find bounding box label bbox_2d highest lowest bar line background foreground yes no none "
    "there it shows a an with zero one two three four five six seven eight nine ten "
    "描述这张图片 图中 有几个 多少 什么 颜色 形状 红色 绿色 蓝色 黄色 橙色 紫色 黑色 白色 灰色 "
    "粉色 棕色 圆形 正方形 三角形 五角星 长方形 位置 检测 定位 识别 文字 编号 总计 合计 金额 "
    "收据 发票 图表 最高 最低 左边 右边 上面 下面 背景 照片 文档 是 的 在 哪里 请 读出 给出 "
    "坐标 数字 一 二 三 四 五 六 七 八 九 十 "
).split()


def corpus() -> list[str]:
    rows = (ROOT / "data" / "mixed" / "mixed.jsonl").read_text("utf-8").splitlines()
    items = [json.loads(row) for row in rows]
    texts = [item[key] for item in items for key in ("question", "answer") if item[key]]
    for index in range(200):
        rng = generator("train", index)
        picture = scene(rng)
        asked = [ask(rng, task, picture) for task in ("colour", "count", "locate", "read")]
        asked.append(ask(rng, "total", picture))
        texts += [text for question in asked for text in (question.text, question.answer)]
    return texts * 2 + [" " + word for word in WORDS] * 20 + WORDS * 20


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        model_max_length=32768,
    )
    fast.chat_template = TEMPLATE
    return fast


def model_config(ids: dict[str, int]) -> dict[str, object]:
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": ids["<|image_pad|>"],
        "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"],
        "vision_end_token_id": ids["<|vision_end|>"],
        "tie_word_embeddings": True,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": VOCABULARY,
            "hidden_size": 256,
            "intermediate_size": 512,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 32,
            "hidden_act": "silu",
            "initializer_range": 0.02,
            "max_position_embeddings": 32768,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "rope_scaling": {
                "rope_type": "default",
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
            "attention_bias": False,
            "tie_word_embeddings": True,
            "pad_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 6,
            "hidden_size": 160,
            "intermediate_size": 480,
            "num_heads": 5,
            "hidden_act": "gelu_pytorch_tanh",
            "initializer_range": 0.02,
            "in_channels": 3,
            "patch_size": 16,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 1024,
            "out_hidden_size": 256,
            "deepstack_visual_indexes": [1, 3],
        },
    }


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    tok = tokenizer()
    tok.save_pretrained(OUT)
    settings = json.loads((OUT / "tokenizer_config.json").read_text("utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"  # known to every transformers 5
    (OUT / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n", "utf-8")
    ids = {name: tok.convert_tokens_to_ids(name) for name in SPECIAL}
    eos = ids["<|im_end|>"]
    files = {
        "config.json": model_config(ids),
        "generation_config.json": {
            "eos_token_id": eos,
            "pad_token_id": ids["<|endoftext|>"],
            "do_sample": False,
        },
        "preprocessor_config.json": {
            "image_processor_type": "Qwen2VLImageProcessor",
            "size": {"shortest_edge": 4096, "longest_edge": 4194304},
            "patch_size": 16,
            "temporal_patch_size": 2,
            "merge_size": 2,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        },
    }
    for name, content in files.items():
        (OUT / name).write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
