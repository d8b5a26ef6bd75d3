"""How a dialogue is written down for a model, and how that text becomes token ids without control ids from the data."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2

from dpobench.artifacts.files import digest
from dpobench.data.rows import Message
from dpobench.errors import UserError

_SPEAKERS = {"user": "Human: ", "assistant": "Assistant: "}
# Two code points that Unicode reserves for such inner use: they mark where a text is cut before it is tokenised.
_CUT = "\ufdd0\ufdd1"


@dataclass(frozen=True)
class Template:
    """A resolved template.

    Args:
        name: "chat" (the tokenizer's own), "plain", or the file's name.
        source: Jinja source; None for "plain".
    """

    name: str
    source: str | None

    @property
    def hash(self) -> str:
        """Content key: two templates of one hash write the same text."""
        return digest("template", self.source if self.source is not None else "plain-1")


def resolve_template(tokenizer: Any, template: str = "auto") -> Template:
    """The template a word stands for.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: "auto" (the tokenizer's chat template if it has one, else "plain"), "plain", or a Jinja file.

    Raises:
        UserError: no such file, or the tokenizer has several templates and none called default.
    """
    if template == "auto":
        if not tokenizer.chat_template:
            return Template("plain", None)
        try:
            return Template("chat", tokenizer.get_chat_template())
        except ValueError as error:
            raise UserError(
                f"the tokenizer has no default chat template; give one with --set data.template=FILE ({error})"
            ) from error
    if template == "plain":
        return Template("plain", None)
    path = Path(template)
    if not path.is_file():
        raise UserError(f"data.template = {template}: no such file; give auto, plain or a Jinja file")
    try:
        source = path.read_text(encoding="utf-8")
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(_without_generation(source))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.template = {template}: cannot be read ({error})") from error
    except jinja2.TemplateSyntaxError as error:
        raise UserError(f"data.template = {template} line {error.lineno}: {error.message}") from error
    return Template(path.name, source)


def _without_generation(source: str) -> str:
    return re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", source)


def render_prompt(tokenizer: Any, messages: Sequence[Message], template: str = "auto") -> str:
    r"""The prompt as text, up to the point where the answer begins.

    The plain template, for models without a chat template, writes `Human: ...\n\nAssistant: ...\n\nHuman: ...\n\nAssistant:`
    after the system turn, if there is one, and an answer as one blank and its text: the blank belongs to the answer, where
    tokenizers put it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: the dialogue; the last turn is the user's.
        template: see `resolve_template`.

    Raises:
        UserError: the template cannot be found or refuses the dialogue.
    """
    writer = Writer(tokenizer, resolve_template(tokenizer, template))
    try:
        return writer.prompt(messages).replace(_CUT, "")
    except jinja2.TemplateError as error:
        raise refused(error) from error


def refused(error: jinja2.TemplateError) -> UserError:
    """What to say when a template raises."""
    return UserError(
        f"the chat template refuses the dialogue: {error}; mend the row, or give --set data.template=plain or =FILE"
    )


def control_tokens(tokenizer: Any) -> tuple[str, ...]:
    """Texts that the tokenizer reads as control tokens, wherever they stand, longest first."""
    added = {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}
    texts = {text for text in added | set(tokenizer.all_special_tokens) if len(text) > 1}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


@dataclass(frozen=True)
class Writer:
    """One tokenizer with one template: dialogues to text, text to ids.

    A control token's text inside a message is cut between all its characters before tokenisation, and so becomes ordinary
    tokens that decode to the same text.
    """

    tokenizer: Any
    template: Template

    @cached_property
    def _control(self) -> re.Pattern[str] | None:
        texts = control_tokens(self.tokenizer)
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    def count_control(self, text: str) -> int:
        """How many control tokens a text of the data holds."""
        return len(self._control.findall(text)) if self._control else 0

    def _neutral(self, turn: Message) -> Message:
        if self._control is None or not self._control.search(turn["content"]):
            return turn
        content = self._control.sub(lambda m: _CUT + _CUT.join(m[0]) + _CUT, turn["content"])
        return {"role": turn["role"], "content": content}

    def prompt(self, messages: Sequence[Message]) -> str:
        """The prompt's text, with marks where it must be cut."""
        return self._written([self._neutral(turn) for turn in messages], asks=True)

    def answer(self, messages: Sequence[Message], content: str, prompt: str) -> str:
        """What follows the prompt's text when an answer is given, with marks where it must be cut.

        Raises:
            UserError: the template writes the prompt differently once it is answered.
        """
        turns = [self._neutral(turn) for turn in (*messages, {"role": "assistant", "content": content})]
        full = self._written(turns, asks=False)
        if not full.startswith(prompt):
            at = next(
                (i for i, (a, b) in enumerate(zip(full, prompt, strict=False)) if a != b), min(len(full), len(prompt))
            )
            raise UserError(
                f"the template {self.template.name!r} writes a prompt differently once it is answered: from character {at} on "
                f"{prompt[at : at + 40]!r} becomes {full[at : at + 40]!r}; give another one with --set data.template=plain or =FILE"
            )
        return full[len(prompt) :]

    def _written(self, turns: Sequence[Message], *, asks: bool) -> str:
        if self.template.source is not None:
            text: str = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=self.template.source,
                tokenize=False,
                add_generation_prompt=asks,
            )
            return text
        parts = [_SPEAKERS.get(turn["role"], "") + turn["content"] for turn in turns]
        return "\n\n".join([*parts, "Assistant:"] if asks else parts)

    @cached_property
    def begins_itself(self) -> bool:
        """Whether the tokenizer puts a begin token before a text of its own accord."""
        begin = self.tokenizer.bos_token_id
        return begin is not None and self.tokenizer("a")["input_ids"][:1] == [begin]

    @cached_property
    def _lead(self) -> list[int]:
        """Ids of a line break, if it takes one before a text to keep the tokenizer from inventing a blank there."""
        lead, alone = self._raw(["\n"])[0], self._raw(["a"])[0]
        inside = self._raw(["\na"])[0]
        return lead if inside[: len(lead)] == lead and inside[len(lead) :] != alone else []

    def _raw(self, texts: Sequence[str]) -> list[list[int]]:
        if not texts:
            return []
        read = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)
        return list(read["input_ids"])

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts: one begin token if the tokenizer or the template gives one, never two."""
        begin = self.tokenizer.bos_token_id
        made = []
        for ids in self._pieces(texts, inside=False):
            start = next((i for i, token in enumerate(ids) if token != begin), len(ids))
            made.append(([begin] if start or self.begins_itself else []) + ids[start:])
        return made

    def answer_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of answers with one end token: what a template writes after its own is cut, a missing one is added."""
        end = self.tokenizer.eos_token_id
        made = self._pieces(texts, inside=True)
        return [(ids[: ids.index(end)] if end in ids else ids) + [end] for ids in made]

    def _pieces(self, texts: Sequence[str], *, inside: bool) -> list[list[int]]:
        """Ids of texts, each tokenised piece by piece between its marks; `inside`: the first piece continues a text."""
        pieces = [[piece for piece in text.split(_CUT) if piece] for text in texts]
        first = [row[0] if row else "" for row in pieces]
        made = self._continued(first) if inside else self._raw(first)
        rest = iter(self._continued([piece for row in pieces for piece in row[1:]]))
        return [ids + [token for _ in row[1:] for token in next(rest)] for ids, row in zip(made, pieces, strict=True)]

    def _continued(self, texts: Sequence[str]) -> list[list[int]]:
        lead = self._lead
        if not lead:
            return self._raw(texts)
        made = self._raw(["\n" + text for text in texts])
        merged = [i for i, ids in enumerate(made) if ids[: len(lead)] != lead]
        again = dict(zip(merged, self._raw([texts[i] for i in merged]), strict=True))
        return [again[i] if i in again else ids[len(lead) :] for i, ids in enumerate(made)]
