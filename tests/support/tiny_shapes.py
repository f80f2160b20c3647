"""The tiny models' matrices, written down by hand: what inspect must find, and what sizes are summed from."""

from lora_sweep.facts.facts import Linear, ModelFacts

LAYERS = 2
Shapes = dict[str, tuple[int, int]]  # path inside a layer -> in, out

LAYER: dict[str, tuple[str, Shapes]] = {
    "llama": (
        "model.layers",
        {
            "self_attn.q_proj": (64, 64),
            "self_attn.k_proj": (64, 32),
            "self_attn.v_proj": (64, 32),
            "self_attn.o_proj": (64, 64),
            "mlp.gate_proj": (64, 128),
            "mlp.up_proj": (64, 128),
            "mlp.down_proj": (128, 64),
        },
    ),
    "gpt2": (
        "transformer.h",
        {"attn.c_attn": (64, 192), "attn.c_proj": (64, 64), "mlp.c_fc": (64, 256), "mlp.c_proj": (256, 64)},
    ),
    "phi3": (
        "model.layers",
        {
            "self_attn.o_proj": (64, 64),
            "self_attn.qkv_proj": (64, 128),
            "mlp.gate_up_proj": (64, 256),
            "mlp.down_proj": (128, 64),
        },
    ),
    "gpt_neox": (
        "gpt_neox.layers",
        {
            "attention.query_key_value": (64, 192),
            "attention.dense": (64, 64),
            "mlp.dense_h_to_4h": (64, 128),
            "mlp.dense_4h_to_h": (128, 64),
        },
    ),
}
ATTN = {
    "llama": ["self_attn.q_proj", "self_attn.v_proj"],
    "gpt2": ["attn.c_attn"],
    "phi3": ["self_attn.qkv_proj"],
    "gpt_neox": ["attention.query_key_value"],
}
BIASED = ("gpt2", "gpt_neox")  # every matrix of a layer has a bias; the head of none has
# A layer's biases outside its matrices are those of two LayerNorms of 64; one more LayerNorm follows the layers.
LAYER_BIASES = {
    "gpt2": 192 + 64 + 256 + 64 + 2 * 64,
    "gpt_neox": 192 + 64 + 128 + 64 + 2 * 64,
}
EMBEDDING = 512 * 64
# Embedding, position embedding, head; a layer's matrices with their biases and its norms; the last norm.
TOTAL = {
    "llama": 2 * EMBEDDING + 2 * (64 * 64 + 2 * 64 * 32 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64,
    "gpt2": EMBEDDING + 1024 * 64 + 2 * (64 * 192 + 64 * 64 + 2 * 64 * 256 + 192 + 64 + 256 + 64 + 4 * 64) + 2 * 64,
    "phi3": 2 * EMBEDDING + 2 * (64 * 128 + 64 * 64 + 3 * 64 * 128 + 2 * 64) + 64,
    "gpt_neox": 2 * EMBEDDING + 2 * (64 * 192 + 64 * 64 + 2 * 64 * 128 + 192 + 64 + 128 + 64 + 4 * 64) + 2 * 64,
}


def hand_facts(shape: str, tied: bool | None = None) -> ModelFacts:
    """The facts of a tiny model as the tables above say; the head is tied in GPT-2 unless asked for otherwise."""
    tied = shape == "gpt2" if tied is None else tied
    stack, shapes = LAYER[shape]
    paths = [(f"{stack}.{layer}.{path}", path) for layer in range(LAYERS) for path in shapes]
    linears = [Linear(name, *shapes[path], shape in BIASED) for name, path in paths]
    usually = shape == "gpt2"
    return ModelFacts(
        fingerprint=f"tiny:{shape}-1",
        model_type=shape,
        linears=[*linears, Linear("lm_head", 64, 512)],
        attn=[name for name, path in paths if path in ATTN[shape]],
        mlp=[name for name, path in paths if path.startswith("mlp.")],
        head="lm_head",
        tied_head=tied,
        total_params=TOTAL[shape] + (usually - tied) * EMBEDDING,
        bias_params=LAYERS * LAYER_BIASES[shape] + 64 if shape in BIASED else 0,
        hidden_size=64,
        layers=LAYERS,
        vocab_size=512,
        max_positions=1024,
    )
