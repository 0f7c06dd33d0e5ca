"""Vision-language models measured: what a prompt costs, how fast the first token comes, how good the answers are."""

from tokensieve.utils.lazy import Face as _Face

_face = _Face(
    __name__,
    {
        "tokensieve.answers.benchmark": ["bench"],
        "tokensieve.answers.cost": ["PromptCost", "count_prompts"],
        "tokensieve.answers.prompts": ["ProcessorPrompts", "RandomPrompts", "random_questions"],
        "tokensieve.answers.score": ["AnswerMeters", "is_right", "plain"],
        "tokensieve.answers.variants": ["controls_of", "reduce"],
        "tokensieve.data.questions": ["Question", "read_questions"],
    },
)
__getattr__, __dir__ = _face.get, _face.listed
