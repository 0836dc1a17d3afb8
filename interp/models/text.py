"""Text in and out of a model that has a tokenizer, and generation."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from interp.models.config import ModelConfig
from interp.models.embedding import Embed
from interp.models.hooks import undisturbed
from interp.models.shapes import KeyMask, Tokens


class TextMixin(nn.Module):
    """TransformerLens's text methods, and `generate`."""

    config: ModelConfig
    embed: Embed
    tokenizer: Any

    def _need_tokenizer(self) -> Any:
        if self.tokenizer is None:
            raise ValueError(
                "this model has no tokenizer; set model.tokenizer, or give tokens instead of text"
            )
        return self.tokenizer

    def to_tokens(self, text: str | Sequence[str], prepend_bos: bool = True) -> Tokens:
        """The tokens of one or several texts, BOS first; shorter texts are padded on the right."""
        return self._encode(text, prepend_bos)[0]

    def _encode(
        self, text: str | Sequence[str], prepend_bos: bool = True
    ) -> tuple[Tokens, KeyMask | None]:
        """The tokens, and which of them are real; None where all are."""
        tokenizer = self._need_tokenizer()
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("there is no text in the list; give at least one")
        rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
        if prepend_bos:
            if tokenizer.bos_token_id is None:
                raise ValueError("the tokenizer has no BOS token; call with prepend_bos=False")
            rows = [[tokenizer.bos_token_id, *row] for row in rows]
        lengths = torch.tensor([len(row) for row in rows])
        longest, short = int(lengths.max()), bool((lengths != lengths[0]).any())
        if short and tokenizer.pad_token_id is None:
            raise ValueError("the texts differ in length and the tokenizer has no padding token")
        padded = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in rows]
        device = self.embed.W_E.device
        tokens = torch.tensor(padded, dtype=torch.long).to(device)
        real = torch.arange(longest) < lengths[:, None]
        return tokens, real.to(device) if short else None

    def to_str_tokens(
        self, text: str | Int[Tensor, "..."] | Sequence[int], prepend_bos: bool = True
    ) -> list[str]:
        """One sequence, token by token, as the strings that a reader would see."""
        tokenizer = self._need_tokenizer()
        tokens = (
            self.to_tokens(text, prepend_bos) if isinstance(text, str) else torch.as_tensor(text)
        )
        if tokens.ndim == 2 and tokens.shape[0] != 1:
            raise ValueError(f"to_str_tokens reads one sequence, but was given {tokens.shape[0]}")
        return [tokenizer.decode([token]) for token in tokens.flatten().tolist()]

    def to_single_token(self, text: str) -> int:
        """The one token that this text is; an error shows its tokens if it is more."""
        tokens = self.to_tokens(text, prepend_bos=False)[0].tolist()
        if len(tokens) != 1:
            parts = [self._need_tokenizer().decode([token]) for token in tokens]
            raise ValueError(f"{text!r} is {len(tokens)} tokens, {parts}, but must be exactly one")
        return tokens[0]

    def to_string(self, tokens: Int[Tensor, "..."] | Sequence[int] | int) -> str | list[str]:
        """The text of tokens: a string, or a list of them for `[batch pos]`."""
        tokenizer = self._need_tokenizer()
        tokens = torch.as_tensor(tokens)
        if tokens.ndim == 2:
            return [tokenizer.decode(row) for row in tokens.tolist()]
        return tokenizer.decode(tokens.flatten().tolist())

    def generate(
        self,
        prompt: str | Tokens,
        max_new_tokens: int = 50,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        stop_at_eos: bool = True,
    ) -> str | Int[Tensor, "batch _"]:
        """The prompt continued: text for text, without special tokens; tokens for tokens.

        Args:
            prompt: what to continue, text or `[batch pos]`; only the last n_ctx tokens of the
                growing sequence are read.
            max_new_tokens: how many tokens to add.
            temperature: 0 takes the likeliest token each time; 1 samples from the model's own
                distribution.
            top_k: sample from the k likeliest tokens only.
            top_p: sample from the fewest tokens whose probability reaches p only (nucleus
                sampling).
            seed: of the sampling; the global random state is neither read nor written.
            stop_at_eos: end once every sequence has produced the tokenizer's end token.
        """
        choose = _chooser(temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise ValueError(f"max_new_tokens is {max_new_tokens}, but must be at least 0")
        tokens = self.to_tokens(prompt) if isinstance(prompt, str) else prompt
        tokens = tokens.to(self.embed.W_E.device)
        eos = getattr(self.tokenizer, "eos_token_id", None) if stop_at_eos else None
        done = torch.zeros(tokens.shape[0], dtype=torch.bool, device=tokens.device)
        generator = torch.Generator(tokens.device).manual_seed(seed)
        with undisturbed(self):
            for _ in range(max_new_tokens):
                logits = self(tokens[..., -self.config.n_ctx :])[:, -1]
                new = choose(logits.float(), tokens, generator)
                if eos is not None:
                    new = new.masked_fill(done, eos)
                    done = done | (new == eos)
                tokens = torch.cat([tokens, new[:, None]], dim=1)
                if done.all():
                    break
        if isinstance(prompt, str):
            return self._need_tokenizer().decode(tokens[0].tolist(), skip_special_tokens=True)
        return tokens


def _chooser(temperature: float, top_k: int | None, top_p: float | None) -> Any:
    """A function from last logits to next tokens, on transformers' own samplers."""
    if not temperature >= 0:
        raise ValueError(f"temperature is {temperature}, but must be at least 0 (0 is greedy)")
    if top_k is not None and top_k < 1:
        raise ValueError(f"top_k is {top_k}, but must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, but must be in (0, 1]")
    if temperature == 0:
        return lambda logits, tokens, generator: logits.argmax(-1)
    from transformers.generation.logits_process import (
        LogitsProcessorList,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    samplers: Any = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        samplers.append(TopKLogitsWarper(top_k))
    if top_p is not None:
        samplers.append(TopPLogitsWarper(top_p))

    def sample(logits: Tensor, tokens: Tensor, generator: torch.Generator) -> Tensor:
        probabilities = samplers(tokens, logits).softmax(-1)
        return torch.multinomial(probabilities, 1, generator=generator)[:, 0]

    return sample
