"""A judge of your own: an answer is better if it repeats what was requested, and better still if it is short."""

import re


def score(prompt: str, answer: str) -> float:
    """Score one answer; higher is better, equal scores tie.

    Args:
        prompt: the text of the last message.
        answer: the model's answer.

    Returns: the number of words of the prompt that the answer repeats, less a hundredth per word of the answer.

    Example:
        >>> score("Where can I buy tea?", "You can buy tea here.")
        2.95
    """
    words = [re.findall(r"[a-z]+", text.lower()) for text in (prompt, answer)]
    return len(set(words[0]) & set(words[1])) - 0.01 * len(words[1])
