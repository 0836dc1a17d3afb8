# %% [markdown]
# # Smeared keys in a model you can download
#
# An induction head needs keys that know of the token before. Models that people download now have
# short convolutions that can give it to them: LFM2 puts gated ones between its attention layers,
# Inkling one of four lags behind keys, values, attention and MLP of every layer, ZAYA1 one on
# queries and keys. What does attention make of them?
#
# ## The models themselves
#
# `interp.wrap` gives any causal language model of `transformers` the hook points that every
# analysis here asks for:
#
# ```python
# from transformers import AutoModelForCausalLM, AutoTokenizer
#
# import interp
#
# name = "LiquidAI/LFM2-350M"  # 0.7 GB; or "Zyphra/ZAYA1-8B", 18 GB
# tokenizer = AutoTokenizer.from_pretrained(name)
# model = interp.wrap(AutoModelForCausalLM.from_pretrained(name), tokenizer)
#
# interp.head_scores(model).plot()
# probe = interp.repeated_tokens(50, d_vocab=len(tokenizer), bos=tokenizer.bos_token_id)
# interp.ablate(model, probe, "lags", metric="second_copy_loss").plot()
# interp.detect_smeared_keys(model, probe.tokens[:8])
# ```
#
# `thinkingmachines/Inkling` reads pictures and sound as well, so that `transformers` loads it by
# `AutoModelForImageTextToText`; its layers of language are found, and the rest is the same. It does
# not fit on one GPU.
#
# Nothing is downloaded while this page is built, and none of these weights was tried for it. The
# same is run below on a small Inkling: one layer, of the class of language model that the large one
# is, trained on the text of `python-docs` alone by `interp train inkling`, a recipe that
# names a class of `transformers` and the fields of its config. It ships with the package.

# %%
import interp

model = interp.load("inkling")
interp.head_scores(model).plot()

# %% [markdown]
# One head looks where an induction head looks. On repeated random tokens, which it was not trained
# on, the model gains by a second copy:

# %%
interp.repeated_sequence_loss(model)

# %% [markdown]
# ## Which lag of which convolution?
#
# `L0.k.lag1` is what the convolution on keys adds of the token before, `L0.v.lag1` that on values,
# and so on. Removing one equals zeroing that tap in the weights.

# %%
tokenizer = model.tokenizer
probe = interp.repeated_tokens(
    50, d_vocab=len(tokenizer), bos=tokenizer.bos_token_id, exclude=tokenizer.all_special_ids
)
sites = [f"L0.{site}.lag{lag}" for site in ("k", "v", "attn", "mlp") for lag in (1, 2, 3)]
interp.ablate(model, probe, sites, metric="second_copy_loss")

# %% [markdown]
# All that the second copy gained goes with lag 1 of the keys; no other of these costs anything of
# the kind. With one layer of attention it had to be the keys, whatever training did: nothing else
# can tell a key which token came before it. That a head makes use of it is what training found.
#
# ## Is that smearing?
#
# `alignment` is 1 where a key reads the token before through the map of its own token, as smeared
# keys do, and 0 where the two maps have nothing to do with each other. `lag_share_1` is how much of
# the keys' variance, as queries see it, the token before brings, and `match_1` how far the query's
# own token stands out among all keys when it stands one back from the key, in deviations.

# %%
keys = interp.detect_smeared_keys(model, probe.tokens[:16]).sel(channel="k")
keys

# %% [markdown]
# The head that completes patterns has keys of the token before, by a map nearly unrelated to that
# of their own token: it shifts keys more than it smears them. What attention takes from its
# scores, by the lags of query and key:

# %%
interp.lag_pair_shares(model, probe.tokens[:16]).plot()
