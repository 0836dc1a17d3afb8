"""The questions that an analysis may ask of any model, whoever wrote it."""

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.models.description import (
    STREAM,
    Order,
    Reader,
    Step,
    Writer,
    of_layer,
    stream_hook,
)
from interp.models.hooks import undisturbed
from interp.models.linear import FrozenNorm
from interp.models.shapes import Logits, Scores, Stream, Tokens
from interp.results.labels import head_of
from interp.views.entries import Entries, Index
from interp.views.running import EverythingCaptured, Hook, Running, Start, keeping
from interp.views.sums import sums_of

ReadEntries = Callable[[int, Entries], None]
ReadHook = tuple[str, Callable[..., None]]


class View(Running):
    """The questions. A model is left as it was: its mode, its hooks, its gradients."""

    starts_anywhere: bool
    """Whether a forward pass can begin at a `Start`."""
    starts_within: bool = False
    """Whether it can begin above the mixer of a layer, too."""
    spells_out: bool = False
    """Whether every pass computes all attention patterns and all logits that it is asked for."""
    keeps_gradients = False
    """Whether passes can be differentiated: inside `with view.gradients()`."""

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """Inside, passes can be differentiated; else the model is left as it was, as always."""
        with undisturbed(self.model), torch.enable_grad():
            self.keeps_gradients = True
            try:
                yield
            finally:
                self.keeps_gradients = False

    @contextmanager
    def running(self) -> Iterator[None]:
        """What every pass runs in: eval mode, and gradients only if they are asked for."""
        with undisturbed(self.model), torch.set_grad_enabled(self.keeps_gradients):
            yield

    @contextmanager
    def hooked(self, hooks: Sequence[Hook]) -> Iterator[None]:
        """Inside, every pass runs under these hooks."""
        with self.model.hooks(fwd_hooks=list(hooks)):
            yield

    @abstractmethod
    def causal(self, layer: int) -> bool:
        """Whether the layer's queries see no later key."""

    def visible(self, layer: int, n_pos: int) -> Bool[Tensor, "query key"]:
        """Which keys each query sees, in a sequence of this length."""
        everything = torch.ones(n_pos, n_pos, dtype=torch.bool)
        return everything.tril() if self.causal(layer) else everything

    @property
    def bidirectional(self) -> tuple[int, ...]:
        """The layers whose queries see later keys."""
        return tuple(layer for layer in self.heads if not self.causal(layer))

    @abstractmethod
    def key_heads(self, layer: int) -> int:
        """The number of a layer's heads of keys and values, which several queries may share."""

    @property
    def lags(self) -> dict[int, int]:
        """The number of lags of every convolution."""
        described = {layer: self.sublayers(layer) for layer in range(self.n_layers)}
        lags = {
            layer: sum(term.kind == "lag" for sublayer in sublayers for term in sublayer.terms)
            for layer, sublayers in described.items()
        }
        return {layer: n for layer, n in lags.items() if n}

    def written_by(self, layer: int) -> tuple[Writer, ...]:
        """All that one layer writes."""
        return of_layer(self.writers, layer)

    def taps(self, layer: int) -> Mapping[str, Float[Tensor, "lag channel"]]:
        """The scalars of a layer's depthwise convolutions, by what each stands on: "k", "attn"."""
        return {}

    def stray_lags(self, layer: int) -> tuple[Reader, ...]:
        """Lags of convolutions in a layer of which it is not known what it writes."""
        return ()

    def readers(self, layer: int, kind: str) -> tuple[Reader, ...]:
        """A layer's readers of one kind, such as its keys."""
        sublayers = self.sublayers(layer)
        return tuple(one for sub in sublayers for one in sub.readers if one.kind == kind)

    @property
    def patterns(self) -> dict[int, str]:
        """The hook point of each layer's attention patterns."""
        return {layer: self.readers(layer, "pattern")[0].place.hook for layer in self.heads}

    def order(self, hook: str) -> tuple[Order, Order]:
        """When what stands at a hook point is computed: what changes it, and what it changes.

        Whatever it is made of, in layer l this happens, one step after the other (`Step`):

            BEFORE       (l, 0)   hook_resid_pre: the stream enters
            READ         (l, 1)   each mixer reads the stream, side by side with the others
            WRITTEN      (l, 2)   what the mixers write is added
            MIDDLE       (l, 3)   hook_resid_mid: the stream between
            MLP          (l, 4)   the MLP reads the stream
            MLP_WRITTEN  (l, 5)   what it writes is added
            AFTER        (l, 6)   hook_resid_post: the stream leaves

        Embeddings are layer -1. What lies behind the last block comes after all layers, as number
        n_layers.

        Returns:
            `(reads, writes)`. What is written before `reads` changes the activation, and what reads
            after `writes` sees it changed: within a mixer READ and WRITTEN, within an MLP MLP and
            MLP_WRITTEN, and on the stream itself twice the same.
        """
        for writer in self.writers:
            if writer.contains(hook):
                return writer.reads, writer.writes
        layers = range(self.n_layers)
        layer = next((layer for layer in layers if hook.startswith(f"blocks.{layer}.")), None)
        if layer is None:
            below = hook.startswith(("hook_embed", "hook_pos_embed", "embed.", "pos_embed."))
            layer = -1 if below else self.n_layers
            return (layer, Step.READ), (layer, Step.WRITTEN)
        for name, step in STREAM.items():
            if hook == stream_hook(layer, name):
                return (layer, step), (layer, step)
        # What else a block has belongs to one of its sublayers: the norms and inputs of each.
        if hook.startswith(tuple(f"blocks.{layer}.{name}" for name in ("hook_mlp", "mlp.", "ln2"))):
            return (layer, Step.MLP), (layer, Step.MLP_WRITTEN)
        return (layer, Step.READ), (layer, Step.WRITTEN)

    def untrained(self, seed: int) -> "View | None":
        """A model like this with weights drawn anew; None where it cannot be made."""
        return None

    def head(self, label: str) -> tuple[int, int]:
        """Layer and number of a head written "L1H3".

        Raises:
            ValueError: it is no head of this model; the message lists those there are.
        """
        written = head_of(label)
        layer, number = written or (-1, 0)
        if number < self.heads.get(layer, 0):
            return layer, number
        there = ", ".join(
            f"L{one}H0 to L{one}H{n - 1}" if n > 1 else f"L{one}H0" for one, n in self.heads.items()
        )
        there = f"the heads are {there}" if there else "it has no attention layer"
        if written is None:
            raise ValueError(f'head is {label!r}, but a head is written "L1H3"; {there}')
        if 0 <= layer < self.n_layers and layer not in self.heads:
            kinds = " and ".join(writer.kind for writer in self.written_by(layer)) or "nothing"
            raise ValueError(f"{label}: layer {layer} is {kinds} and has no heads; {there}")
        raise ValueError(f"there is no head {label} in {self.name}; {there}")

    @property
    def residual(self) -> bool:
        """Whether sublayers add to the stream; where not, each replaces it."""
        return True

    @property
    @abstractmethod
    def last_norm(self) -> FrozenNorm | None:
        """The norm before the unembedding; None where there is none.

        Raises:
            ValueError: it is not known of.
        """

    @property
    @abstractmethod
    def unembedding(
        self,
    ) -> tuple[Float[Tensor, "d_model vocab"], Float[Tensor, " vocab"] | None]:
        """W_U, and b_U where there is one."""

    def unembed(self, stream: Stream) -> Logits:
        """The logits of a stream: what the model's last norm and its unembedding make of it."""
        return self.model.unembed(self.model.ln_final(stream))

    @property
    @abstractmethod
    def embedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_E, as it enters the stream but for a constant factor.

        Raises:
            ValueError: something that is not linear stands between.
        """

    @property
    @abstractmethod
    def position_table(self) -> Float[Tensor, "pos d_model"] | None:
        """W_pos; None where positions are no table."""

    @property
    def positions_enter_stream(self) -> bool:
        """Whether that table is added to the stream."""
        return self.position_table is not None

    starts_from_tables: bool = False
    """Whether rows of W_E and of the table of positions, added, are what enters layer 0."""

    @property
    def unread_convolutions(self) -> tuple[str, ...]:
        """Convolutions over positions that the description is silent about."""
        return ()

    @property
    def sums_up(self) -> bool:
        """Whether the residual stream is the sum of what was written to it."""
        return True

    def check_writers(self, layers: Collection[int]) -> None:
        """Refuse a model whose layers write more than their description says; -1: the embeddings.

        Raises:
            ValueError: the message names the layer, what is missing, and the remedy.
        """
        if not layers or not self.sums_up:
            return
        wrong = sums_of(self).layers
        for layer in layers:
            if layer not in wrong:
                continue
            what = "what enters layer 0" if layer < 0 else f"what layer {layer} adds"
            instead = "L0.resid_pre" if layer < 0 else f"L{layer}.resid_post"
            raise ValueError(
                f"{self.name}: all that writes {what} is not known: {wrong[layer]}. An answer "
                f"would leave that out in silence; patch the stream instead, such as {instead!r}, "
                "or single hook points"
            )

    def check_heads(self, layers: Collection[int]) -> None:
        """Refuse layers that compute another number of heads than their description has.

        Raises:
            ValueError: the message names the layer and both numbers.
        """
        counts = sums_of(self).counts if layers else {}
        for layer in layers:
            if wrong := counts.get(layer):
                raise ValueError(
                    f"{self.name}: layer {layer}: {wrong}, so its heads cannot be told apart; "
                    "ask about the whole layer, or other layers"
                )

    def bent_heads(self, layer: int) -> str | None:
        """Why what a layer's heads attended to, through W_O, is not what they write; else None."""
        return sums_of(self).heads.get(layer)

    @property
    def is_silent(self) -> bool:
        """Whether nobody else has hooked the model."""
        points = self.model.hook_dict.values()
        return not any(point.fwd_hooks or point.bwd_hooks for point in points)

    @abstractmethod
    def held_patterns(self, layer: int, pattern: Scores) -> list[Hook]:
        """Hooks under which a layer attends as this pattern says, whatever its queries and keys.

        Of a batch that holds the pattern's sequences several times over, each time.
        """

    @abstractmethod
    def logits(self, tokens: Tokens) -> Logits:
        """The model's logits."""

    def capture(
        self,
        tokens: Tokens,
        names: Collection[str],
        *,
        start: Start | None = None,
        hooks: Sequence[Hook] = (),
    ) -> dict[str, Tensor]:
        """The activations at these hook points; nothing above the last of them is computed.

        Raises:
            ValueError: one of them stays silent.
        """
        kept: dict[str, Tensor] = {}
        if names:
            keepers = keeping(names, kept, stop=True)
            with suppress(EverythingCaptured):
                self.outputs(tokens, positions=(0,), start=start, hooks=[*hooks, *keepers])
        if silent := sorted(set(names) - set(kept)):
            raise ValueError(self._silence(silent))
        return kept

    def _no_heads(self) -> str:
        return f"{self.name} has no attention layer with a pattern, so it has no heads to score"

    def _silence(self, names: Sequence[str]) -> str:
        return f"{self.name}: nothing was computed at {', '.join(names)}"

    @abstractmethod
    def _run_with_read_hooks(
        self,
        tokens: Tokens,
        layers: Sequence[int],
        read: ReadEntries,
        start: Start | None,
        hooks: Sequence[Hook],
    ) -> None:
        """Run the model and call `read` for these layers, from the lowest to the highest."""

    def read_attention(
        self,
        tokens: Tokens,
        read: ReadEntries,
        *,
        layers: Collection[int] | None = None,
        start: Start | None = None,
        hooks: Sequence[Hook] = (),
    ) -> None:
        """Run the model and let `read(layer, entries)` have the attention of each layer in turn.

        Entries can be read during the call only: no pattern is kept. Once the last layer's are
        read the model stops, and nothing above them is computed.

        Args:
            tokens: `[batch pos]`.
            read: is called for each layer, from the lowest to the highest.
            layers: the layers to listen to; all that have heads.
            start: where to begin, if not at the tokens.
            hooks: what else to run under: they come before what is read.

        Raises:
            ValueError: the model has no heads.
        """
        if not self.heads:
            raise ValueError(self._no_heads())
        layers = sorted(self.heads if layers is None else layers)

        def read_and_stop(layer: int, entries: Entries) -> None:
            read(layer, entries)
            if layer == layers[-1]:
                raise EverythingCaptured

        with self.running(), suppress(EverythingCaptured):
            self._run_with_read_hooks(tokens, layers, read_and_stop, start, hooks)

    def uniform(
        self, layer: int, queries: Index, keys: Index, n_pos: int
    ) -> Float[Tensor, " entry"]:
        """The attention that a head without preferences pays: equal among the keys in sight."""
        visible = self.visible(layer, n_pos)
        return visible[queries, keys].double() / visible.sum(1)[queries]

    @property
    def head_labels(self) -> tuple[str, ...]:
        """L1H3 for head 3 of layer 1; every layer counts, conv layers too."""
        return tuple(f"L{layer}H{head}" for layer, n in self.heads.items() for head in range(n))

    @property
    def name(self) -> str:
        """What a result calls the model."""
        loaded_from = getattr(self.model, "loaded_from", None)
        kind = type(self.model).__name__
        return f"{loaded_from} ({kind})" if loaded_from else kind

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer, or None."""
        return getattr(self.model, "tokenizer", None)

    @property
    def special_tokens(self) -> tuple[int, ...]:
        """Tokens that no probe should draw: BOS, padding and their like, and unused rows of W_E."""
        if self.tokenizer is None:
            return ()
        unused = range(len(self.tokenizer), self.d_vocab)
        return tuple(sorted({*self.tokenizer.all_special_ids, *unused}))

    def words(self, tokens: list[int]) -> list[str]:
        """Each token as a reader sees it; without a tokenizer, its number."""
        if self.tokenizer is None:
            return [str(token) for token in tokens]
        return [self.tokenizer.decode([token]) for token in tokens]

    @property
    def bos(self) -> int | None:
        """What starts a sequence: BOS, else CLS or the end token, or none; without a tokenizer, 0.

        CLS comes first for a bidirectional model, which was trained with it.
        """
        if self.tokenizer is None:
            return 0
        names = ["bos_token", "cls_token", "eos_token"]
        if self.separator is not None:
            names = ["cls_token", *names]
        tokens = (self._marker(name) for name in names)
        return next((token for token in tokens if token is not None), None)

    @property
    def separator(self) -> int | None:
        """What ends a sequence, where the model reads it from any position: SEP, if there is one.

        Behind the last token it would be invisible to a causal model, and it is left out.
        """
        token = self._marker("sep_token")
        return token if token is not None and self.bidirectional else None

    def _marker(self, name: str) -> int | None:
        """The number of a special token of the tokenizer, if it is in the vocabulary.

        TransformerLens gives a tokenizer without BOS a text for it; one that is not in the
        vocabulary is read as UNK. GPT-2's UNK, never used as such, is what separates documents.
        """
        number = getattr(self.tokenizer, f"{name}_id", None)
        if number is None or number != getattr(self.tokenizer, "unk_token_id", None):
            return number
        text, written = getattr(self.tokenizer, name), self.tokenizer.convert_ids_to_tokens(number)
        return number if text == written == self.tokenizer.eos_token else None

    def check_finite(self) -> None:
        """Refuse a model with a NaN or an infinity in it, naming the weight."""
        for name, weight in self.model.named_parameters():
            # The extremes take one pass and no memory; a NaN is both the least and the greatest.
            if weight.numel() and not all(x.isfinite() for x in weight.detach().aminmax()):
                raise ValueError(
                    f"{self.name}: weight {name!r} holds NaN or infinity, so every result would "
                    "be NaN; load or train the model again"
                )

    def check_predicts_next(self, what: str) -> None:
        """Refuse what reads predictions of the next token where the model has read that token."""
        if not (layers := self.bidirectional):
            return
        raise ValueError(
            f"{self.name} predicts no next token: in layers {list(layers)} every query sees the "
            f"keys after it (bidirectional attention), so there is no {what}. Ask what its heads "
            "attend to (head_scores, attention_pattern, the metric InductionScore), or give a "
            "metric that says which tokens are predicted and where: LogitDifference, or a function "
            "of (logits, tokens)"
        )

    def check_tokens(self, tokens: Tokens, at_least: int = 2) -> None:
        """Refuse tokens that the model cannot read, before any work."""
        if not isinstance(tokens, Tensor):
            raise TypeError(f"tokens are {type(tokens).__name__}; give model.to_tokens(text)")
        whole = not (
            tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool
        )
        if tokens.ndim != 2 or tokens.shape[0] == 0 or not whole:
            raise ValueError(
                f"tokens are {tokens.dtype} of shape {tuple(tokens.shape)}, but must be whole "
                "numbers of shape [batch, pos] with at least one sequence"
            )
        if not at_least <= tokens.shape[1] <= self.n_ctx:
            raise ValueError(
                f"the sequences have {tokens.shape[1]} tokens, but must have {at_least} to "
                f"n_ctx={self.n_ctx}"
            )
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= self.d_vocab:
            raise ValueError(
                f"token {low if low < 0 else high} is outside the vocabulary of {self.d_vocab}"
            )
