# Written by scripts/generate_faces.py from the table in __init__.py; run `make docs`.
from tokensieve.answers.benchmark import bench as bench
from tokensieve.answers.cost import PromptCost as PromptCost
from tokensieve.answers.cost import count_prompts as count_prompts
from tokensieve.answers.prompts import ProcessorPrompts as ProcessorPrompts
from tokensieve.answers.prompts import RandomPrompts as RandomPrompts
from tokensieve.answers.prompts import random_questions as random_questions
from tokensieve.answers.score import AnswerMeters as AnswerMeters
from tokensieve.answers.score import is_right as is_right
from tokensieve.answers.score import plain as plain
from tokensieve.answers.variants import controls_of as controls_of
from tokensieve.answers.variants import reduce as reduce
from tokensieve.data.questions import Question as Question
from tokensieve.data.questions import read_questions as read_questions

__all__ = [
    "AnswerMeters",
    "ProcessorPrompts",
    "PromptCost",
    "Question",
    "RandomPrompts",
    "bench",
    "controls_of",
    "count_prompts",
    "is_right",
    "plain",
    "random_questions",
    "read_questions",
    "reduce",
]
