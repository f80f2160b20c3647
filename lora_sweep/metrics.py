"""The names of the metrics, what each means, and in which order people read them. ``score`` computes them."""

# Name -> (what it is and its unit, whether higher is better; None: neither), in the order of display.
METRICS: dict[str, tuple[str, bool | None]] = {
    "quality": ("0-100: ROUGE-L F1 with each repeated 4-gram as four more words, halved if cut off", True),
    "chrf": ("0-100: sacrebleu's sentence chrF2 against the reference; prefers long texts", True),
    "rouge_l": ("0-100: ROUGE-L F1 against the reference, no stemmer", True),
    "repetition_4gram": ("0-1: share of the text's 4-grams of words that stood in it before", False),
    "distinct_2": ("0-1: share of distinct bigrams of words", True),
    "finished": ("0-1: ended by itself, before the limit of new tokens", True),
    "length_ratio": ("words of the text / words of the reference", None),
    "product_named": ("0-1: the product's name stands in the text", True),
    "response_nll": ("nats a token of the reference under the model", False),
    "words": ("words of the text", None),
}
