"""The names of the metrics and their meaning, in the order in which people read them. ``score`` computes them."""

# Name -> (unit and meaning, whether higher is better), in the order of display. None: neither is better.
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

# The scorers that call a text right or wrong: the mean of their quality is a share, even where all texts are wrong.
SHARE_SCORERS = ("exact_match", "label", "regex")

# The metrics that the other scorers add; quality is then 100 times the main one (``scorers.MAIN_METRICS``).
SCORER_METRICS: dict[str, tuple[str, bool | None]] = {
    "exact_match": ("0-1: the text is the reference, but for white space; exact_match's quality", True),
    "label_correct": ("0-1: the text is the reference's label; label's quality", True),
    "label_known": ("0-1: the text is one of the labels", True),
    "json_valid": ("0-1: the text is JSON", True),
    "json_keys": ("0-1: F1 of the paths of the text's keys against the reference's", True),
    "json_values": ("0-1: share of the reference's leaves that the text has, at their place; json's quality", True),
    "regex_found": ("0-1: eval.pattern is found in the text", True),
    "regex_match": ("0-1: eval.pattern finds the same in text and reference; regex's quality", True),
}
