"""TransformerLens's ActivationCache, for models in which some layers are convolutions."""

from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor
from transformer_lens import ActivationCache as _ActivationCache
from transformer_lens.utilities.slice import Slice

from interp.models.block import Block
from interp.models.checks import require_choice
from interp.models.description import Term
from interp.models.layers import FeedForward
from interp.models.linear import later
from interp.models.weights import WeightsMixin

Group = tuple[list[str], Tensor]
"""Labels, and as many components of the stream stacked: [component *batch pos d_model]."""


class ActivationCache(_ActivationCache):
    """What `run_with_cache` returns. The decompositions count a conv layer like any other.

    A conv layer is one component, `0_conv_out`, of `decompose_resid`, and one per lag,
    `0_conv_lag1`, of `get_full_resid_decomposition`. Components add up to the stream that they
    decompose, and `logit_attrs` of them plus `model.logit_bias` to the logits: the last norm's gain
    is in the attributions, its offset in the bias.

    Raises:
        ValueError: from every decomposition, where the model has no residual stream to decompose or
            its norms stand on the stream itself.
    """

    model: WeightsMixin

    cuts_positions: bool = False
    """Whether only some positions are kept: what goes on to later ones is not known then."""

    def apply_slice_to_batch_dim(self, batch_slice: Any) -> "ActivationCache":
        """The cache of some sequences only."""
        sliced = super().apply_slice_to_batch_dim(batch_slice)
        cache = ActivationCache(sliced.cache_dict, self.model, has_batch_dim=sliced.has_batch_dim)
        cache.cuts_positions = self.cuts_positions
        return cache

    def decompose_resid(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        mode: str = "all",
        apply_ln: bool = False,
        pos_slice: Any = None,
        incl_embeds: bool = True,
        return_labels: bool = False,
    ) -> Any:
        """TransformerLens's `decompose_resid`: embeddings and layer outputs, up to a layer's input.

        `mode` is "all", "attn", "mlp" or, ours, "conv".
        """
        layers = range(len(self.model.blocks))
        kinds = {part.writer.kind for index in layers for part in self.model.sublayers(index)}
        require_choice("mode", mode, ("all", *sorted(kinds | {"attn", "conv", "mlp"})))
        layer = self._layer(layer, mlp_input)
        embeddings = self._embeddings() if incl_embeds else ()
        groups = chain(embeddings, self._sublayers(layer, mlp_input, mode))
        finish = self._finish(layer, mlp_input, apply_ln, pos_slice)
        return self._collect(groups, finish, return_labels)

    def accumulated_resid(
        self,
        layer: int | None = None,
        incl_mid: bool = False,
        apply_ln: bool = False,
        pos_slice: Any = None,
        mlp_input: bool = False,
        return_labels: bool = False,
    ) -> Any:
        """TransformerLens's `accumulated_resid`; `incl_mid` needs an MLP in every block before."""
        layer = self._layer(layer, mlp_input)
        if incl_mid and (bare := [i for i in range(layer) if self._mlp(i) is None]):
            raise ValueError(
                f"incl_mid: block {bare[0]} has no MLP, so it has no stream in its middle; "
                "leave incl_mid False"
            )
        return super().accumulated_resid(
            layer, incl_mid, apply_ln, pos_slice, mlp_input, return_labels
        )

    def stack_head_results(
        self,
        layer: int | None = -1,
        return_labels: bool = False,
        incl_remainder: bool = False,
        pos_slice: Any = None,
        apply_ln: bool = False,
    ) -> Any:
        """TransformerLens's `stack_head_results`: what each head wrote, up to a layer's input.

        The labels are of the form L1H3. Where what heads write goes through taps, it is what comes
        out of them.
        """
        layer = self._layer(layer)
        groups = list(self._head_results(layer))
        if incl_remainder:
            written = [results.sum(0) for _, results in groups]
            groups.append((["remainder"], (self._stream_before(layer) - sum(written))[None]))
        finish = self._finish(layer, False, apply_ln, pos_slice)
        return self._collect(groups, finish, return_labels)

    def get_full_resid_decomposition(
        self,
        layer: int | None = None,
        mlp_input: bool = False,
        expand_neurons: bool = True,
        apply_ln: bool = False,
        pos_slice: Any = None,
        return_labels: bool = False,
        project_output_onto: Tensor | None = None,
    ) -> Any:
        """TransformerLens's decomposition into heads, neurons, embeddings, biases; and conv lags.

        The order is heads, conv lags, neurons (or MLP layers), embeddings, and one row with every
        bias. A projection is taken layer by layer, before the parts are stacked.
        """
        layer = self._layer(layer, mlp_input)
        bias = self.model.accumulated_bias(layer, mlp_input, include_mlp_biases=expand_neurons)
        groups = chain(
            self._head_results(layer + mlp_input),
            self._lags(layer + mlp_input),
            self._neurons(layer) if expand_neurons else self._sublayers(layer, False, "mlp"),
            self._embeddings(),
            [(["bias"], bias.expand_as(self["hook_embed"])[None])],
        )
        finish = self._finish(layer, mlp_input, apply_ln, pos_slice, project_output_onto)
        return self._collect(groups, finish, return_labels)

    def logit_attrs(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `logit_attrs`.

        Their sum over a whole decomposition, plus `model.logit_bias(tokens)`, is the logits.
        """
        self._refuse_without_stream()
        return super().logit_attrs(*args, **kwargs)

    def apply_ln_to_stack(self, *args: Any, **kwargs: Any) -> Any:
        """TransformerLens's `apply_ln_to_stack`: centring and the cached scale, not the gain."""
        self._refuse_without_stream()
        return super().apply_ln_to_stack(*args, **kwargs)

    def compute_head_results(self) -> None:
        """Cache `hook_result` of every attention layer that has only `hook_z`; before taps."""
        for layer in self.model.attention_layers:
            name = f"blocks.{layer}.attn.hook_result"
            if name not in self.cache_dict:
                z = self[f"blocks.{layer}.attn.hook_z"]
                results = torch.einsum("...hd,hdm->...hm", z, self.model.attn(layer).W_O)
                self.cache_dict[name] = results

    def _refuse_without_stream(self) -> None:
        config = self.model.config
        if not config.residual:
            raise ValueError(
                "this model has no residual stream: each layer replaces the one before, so its "
                "activations are not a sum of components. Read them from the cache by name instead"
            )
        if config.norm_place == "post":
            raise ValueError(
                "this model normalises the residual stream itself after every layer (post-norm), "
                "so the stream is not a sum of components. Use a pre-norm model, or read "
                "activations from the cache by name"
            )

    def _layer(self, layer: int | None, mlp_input: bool = False) -> int:
        """The layer whose input is asked for, counted from 0; the end is the number of layers."""
        self._refuse_without_stream()
        n_layers = len(self.model.blocks)
        layer = n_layers if layer in (None, -1) else layer
        if not 0 <= layer <= n_layers:
            raise ValueError(
                f"layer is {layer}, but must be 0 to {n_layers}; {n_layers} (or -1) is the end"
            )
        if mlp_input and (layer == n_layers or self._mlp(layer) is None):
            raise ValueError(f"mlp_input: layer {layer} has no MLP; leave mlp_input False")
        return layer

    def _mlp(self, layer: int) -> FeedForward | None:
        return cast(Block, self.model.blocks[layer]).mlp

    def _finish(
        self,
        layer: int,
        mlp_input: bool,
        apply_ln: bool,
        pos_slice: Any,
        project_onto: Tensor | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """What is done to a stack of components: cut, as a layer's norm scales it, projected."""
        cut = pos_slice if isinstance(pos_slice, Slice) else Slice(pos_slice)

        def finish(stack: Tensor) -> Tensor:
            stack = cut.apply(stack, dim=-2)
            if apply_ln:
                stack = self.apply_ln_to_stack(stack, layer, mlp_input=mlp_input, pos_slice=cut)
            return stack if project_onto is None else stack @ project_onto

        return finish

    def _collect(
        self, groups: Iterable[Group], finish: Callable[[Tensor], Tensor], return_labels: bool
    ) -> Any:
        nothing = torch.empty_like(self["hook_embed"])[None][:0]
        labels, stacks = [], [finish(nothing)]
        for names, stack in groups:
            labels += names
            stacks.append(finish(stack))
        return (torch.cat(stacks), labels) if return_labels else torch.cat(stacks)

    def _stream_before(self, layer: int) -> Tensor:
        if layer == len(self.model.blocks):
            return self[f"blocks.{layer - 1}.hook_resid_post"]
        return self[f"blocks.{layer}.hook_resid_pre"]

    def _embeddings(self) -> Iterator[Group]:
        yield ["embed"], self["hook_embed"][None]
        # Shortformer positions reach queries and keys only; they are no part of the stream.
        if self.has_pos_embed and self.model.positions_enter_stream:
            yield ["pos_embed"], self["hook_pos_embed"][None]

    def _sublayers(self, layer: int, mlp_input: bool, mode: str) -> Iterator[Group]:
        for index in range(layer + mlp_input):
            mixer, *rest = self.model.sublayers(index)
            for writer in (part.writer for part in (mixer, *(rest if index < layer else ()))):
                if mode in ("all", writer.kind):
                    yield [f"{index}_{writer.kind}_out"], self[writer.hook][None]

    def _head_results(self, layer: int) -> Iterator[Group]:
        self.compute_head_results()
        for index in (i for i in self.model.attention_layers if i < layer):
            results = self[f"blocks.{index}.attn.hook_result"].movedim(-2, 0)
            results = self._through(
                self.model.attn(index).taps_O, results, f"the heads of L{index}"
            )
            yield [f"L{index}H{head}" for head in range(len(results))], results

    def _lags(self, layer: int) -> Iterator[Group]:
        """What each lag wrote below a layer."""
        for index in range(layer):
            for sublayer in self.model.sublayers(index):
                lags = (term for term in sublayer.terms if term.kind == "lag")
                for number, term in enumerate(lags):
                    yield [f"{index}_{sublayer.writer.kind}_lag{number}"], self._written(term)[None]

    def _written(self, term: Term) -> Tensor:
        activation = self[term.place.hook]
        return term.written(activation if self.has_batch_dim else activation[None]).view(
            *self["hook_embed"].shape
        )

    def _neurons(self, layer: int) -> Iterator[Group]:
        for index in range(layer):
            if (mlp := self._mlp(index)) is not None:
                post = self[f"blocks.{index}.mlp.hook_post"].movedim(-1, 0)[..., None]
                rows = mlp.W_out.view(-1, *[1] * (post.ndim - 2), mlp.W_out.shape[-1])
                written = self._through(mlp.taps_out, post * rows, f"the neurons of L{index}")
                yield [f"L{index}N{neuron}" for neuron in range(len(rows))], written

    def _through(self, taps: Tensor | None, x: Tensor, whose: str) -> Tensor:
        """What becomes of what is written, where it goes through taps on its way to the stream."""
        if taps is None:
            return x
        if self.cuts_positions:
            raise ValueError(
                f"what {whose} write goes through taps to later positions, and this cache has only "
                "some of them; leave pos_slice out of run_with_cache, and give it to this method"
            )
        return sum((later(x * row, lag) for lag, row in enumerate(taps)), torch.zeros_like(x))
