"""Dialogues as text for a model, and that text as token ids, where no text of the data becomes a control token."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypedDict

import jinja2

from dpobench.artifacts.files import digest
from dpobench.data.rows import Message
from dpobench.errors import UserError

_SPEAKERS = {"user": "Human: ", "assistant": "Assistant: "}
# Two code points that Unicode reserves for internal use: they mark where a text is cut before it is tokenised.
_CUT = "\ufdd0\ufdd1"


class AddedToken(Protocol):
    """A token that was added to the vocabulary of a tokenizer."""

    @property
    def content(self) -> str:
        """Its text."""

    @property
    def special(self) -> bool:
        """Whether it is a control token, which decoding may leave out."""


class Tokenizer(Protocol):
    """What dpobench uses of a Hugging Face tokenizer (`transformers.PreTrainedTokenizerBase`) to tokenise."""

    @property
    def chat_template(self) -> str | dict[str, str] | None:
        """Jinja source of its chat template, or of several by name."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of the begin token, if there is one."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end token, if there is one."""

    @property
    def pad_token_id(self) -> int | None:
        """Id of the padding token, if there is one."""

    @property
    def unk_token_id(self) -> int | None:
        """Id of the token for unknown text, if there is one."""

    @property
    def all_special_tokens(self) -> Sequence[str]:
        """Texts of the control tokens that have a role, such as begin and end."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """Tokens that were added to the vocabulary, by id."""

    def get_chat_template(self) -> str:
        """Jinja source of the default chat template; ValueError where there is none."""

    def apply_chat_template(
        self, conversation: list[dict[str, str]], *, chat_template: str, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """Text of a dialogue."""

    def __call__(
        self, text: str | list[str], *, add_special_tokens: bool, return_attention_mask: bool, verbose: bool
    ) -> Mapping[str, list[list[int]]]:
        """Token ids of texts, under `input_ids`."""

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokens of ids, as the vocabulary spells them."""


class TemplateRecord(TypedDict):
    """A `Template` as JSON holds it."""

    name: str
    hash: str


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

    def to_json(self) -> TemplateRecord:
        """Name and hash."""
        return {"name": self.name, "hash": self.hash}


def resolve_template(tokenizer: Tokenizer, template: str = "auto") -> Template:
    """The template that a setting names.

    Args:
        tokenizer: a Hugging Face tokenizer.
        template: "auto" (the tokenizer's chat template if it has one, else "plain"), "plain", or a Jinja file.

    Raises:
        UserError: no such file, or one that is no Jinja; or the tokenizer has several templates and none called default.
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


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message], template: str = "auto") -> str:
    r"""The prompt as text, up to the point where the answer begins.

    The plain template, for models without a chat template, writes `Human: ...\n\nAssistant: ...\n\nHuman: ...\n\nAssistant:`
    after the system turn, if there is one, and an answer as one blank and its text: the blank belongs to the answer, where
    tokenizers put it.

    Args:
        tokenizer: a Hugging Face tokenizer.
        messages: the dialogue; the last turn is the user's.
        template: see `resolve_template`.

    Raises:
        UserError: there is no such template, or it refuses the dialogue.
    """
    writer = Writer(tokenizer, resolve_template(tokenizer, template))
    try:
        return writer.prompt(messages).replace(_CUT, "")
    except jinja2.TemplateError as error:
        raise refused(error) from error


def refused(error: jinja2.TemplateError) -> UserError:
    """The error to raise when a template raises."""
    return UserError(
        f"the chat template refuses the dialogue: {error}; mend the row, or give --set data.template=plain or =FILE"
    )


def control_tokens(tokenizer: Tokenizer) -> tuple[str, ...]:
    """Texts that the tokenizer reads as control tokens anywhere in a text, longest first."""
    added = {str(t.content) for t in tokenizer.added_tokens_decoder.values() if t.special}
    texts = {text for text in added | set(tokenizer.all_special_tokens) if len(text) > 1}
    return tuple(sorted(texts, key=lambda text: (-len(text), text)))


@dataclass(frozen=True)
class Writer:
    """One tokenizer with one template: dialogues to text, text to ids.

    A control token's text inside a message is cut between all its characters before tokenisation, and so becomes ordinary
    tokens that decode to the same text.

    Args:
        tokenizer: a Hugging Face tokenizer with an end token.
        template: how dialogues are written.
    """

    tokenizer: Tokenizer
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
        return self._rendered([self._neutral(turn) for turn in messages], open_answer=True)

    def answer(self, messages: Sequence[Message], content: str, prompt: str) -> str:
        """What follows the prompt's text when an answer is given, with marks where it must be cut.

        Raises:
            UserError: the template writes the prompt differently once it is answered.
        """
        turns = [self._neutral(turn) for turn in (*messages, {"role": "assistant", "content": content})]
        full = self._rendered(turns, open_answer=False)
        if not full.startswith(prompt):
            at = next(
                (i for i, (a, b) in enumerate(zip(full, prompt, strict=False)) if a != b), min(len(full), len(prompt))
            )
            raise UserError(
                f"the template {self.template.name!r} writes a prompt differently once it is answered: from character {at} on "
                f"{prompt[at : at + 40]!r} becomes {full[at : at + 40]!r}; give another one with --set data.template=plain or =FILE"
            )
        return full[len(prompt) :]

    def _rendered(self, turns: Sequence[Message], *, open_answer: bool) -> str:
        """The dialogue as text; `open_answer` ends it where the assistant's answer begins."""
        if self.template.source is not None:
            text: str = self.tokenizer.apply_chat_template(
                [dict(turn) for turn in turns],
                chat_template=self.template.source,
                tokenize=False,
                add_generation_prompt=open_answer,
            )
            return text
        parts = [_SPEAKERS.get(turn["role"], "") + turn["content"] for turn in turns]
        return "\n\n".join([*parts, "Assistant:"] if open_answer else parts)

    @cached_property
    def adds_begin_token(self) -> bool:
        """Whether the tokenizer puts a begin token before each text by default."""
        begin = self.tokenizer.bos_token_id
        return begin is not None and self._ids(["a"], add_special_tokens=True)[0][:1] == [begin]

    @cached_property
    def _lead(self) -> list[int]:
        """Ids of a line break, if one must come before a text lest the tokenizer insert a blank there; else none."""
        lead, alone = self._ids(["\n"])[0], self._ids(["a"])[0]
        inside = self._ids(["\na"])[0]
        return lead if inside[: len(lead)] == lead and inside[len(lead) :] != alone else []

    def _ids(self, texts: Sequence[str], *, add_special_tokens: bool = False) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(
            list(texts), add_special_tokens=add_special_tokens, return_attention_mask=False, verbose=False
        )
        return encoded["input_ids"]

    def prompt_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of prompts: one begin token if the tokenizer or the template gives one, never two."""
        begin = self.tokenizer.bos_token_id
        prompts = []
        for ids in self._pieces(texts, continues=False):
            start = next((i for i, token in enumerate(ids) if token != begin), len(ids))
            if begin is not None and (start or self.adds_begin_token):
                prompts.append([begin, *ids[start:]])
            else:
                prompts.append(ids[start:])
        return prompts

    def answer_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of answers with one end token: what a template writes after the first is cut, a missing one is added.

        Raises:
            UserError: the tokenizer has no end token.
        """
        end = self.tokenizer.eos_token_id
        if end is None:
            raise UserError(
                "the tokenizer has no end token (eos_token), so no answer could end; set eos_token in its tokenizer_config.json"
            )
        return [[*(ids[: ids.index(end)] if end in ids else ids), end] for ids in self._pieces(texts, continues=True)]

    def _pieces(self, texts: Sequence[str], *, continues: bool) -> list[list[int]]:
        """Ids of texts, each tokenised piece by piece between its marks; `continues`: the first piece continues a text."""
        pieces = [[piece for piece in text.split(_CUT) if piece] for text in texts]
        first = [row[0] if row else "" for row in pieces]
        first_ids = self._continued(first) if continues else self._ids(first)
        rest = iter(self._continued([piece for row in pieces for piece in row[1:]]))
        return [
            ids + [token for _ in row[1:] for token in next(rest)] for ids, row in zip(first_ids, pieces, strict=True)
        ]

    def _continued(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow another text: without a blank that the tokenizer would insert at a beginning."""
        lead = self._lead
        if not lead:
            return self._ids(texts)
        with_lead = self._ids(["\n" + text for text in texts])
        # Where the line break and the text became one token, the lead cannot be cut off.
        merged = [i for i, ids in enumerate(with_lead) if ids[: len(lead)] != lead]
        alone = dict(zip(merged, self._ids([texts[i] for i in merged]), strict=True))
        return [alone[i] if i in alone else ids[len(lead) :] for i, ids in enumerate(with_lead)]
