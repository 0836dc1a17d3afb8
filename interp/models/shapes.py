"""The one glossary of dimension names, and the tensor shapes that are written with it.

| name      | meaning                                                                     |
|-----------|-----------------------------------------------------------------------------|
| `batch`   | sequences                                                                   |
| `pos`     | token positions of a sequence; position 0 usually holds the BOS token       |
| `query`   | the position that attends                                                   |
| `key`     | the position that is attended to                                            |
| `d_model` | width of the residual stream                                                |
| `head`    | attention heads of one layer                                                |
| `d_head`  | width of one head's queries, keys and values                                |
| `lag`     | how far back a convolution reads: lag j is the token j before the current one |
| `d_mlp`   | neurons of one MLP                                                          |
| `vocab`   | tokens of the vocabulary                                                    |

Activations are row vectors, as in TransformerLens: a map is applied on the right.
"""

from jaxtyping import Bool, Float, Int
from torch import Tensor

Tokens = Int[Tensor, "batch pos"]
KeyMask = Bool[Tensor, "batch pos"]
"""True where a token is real, False where it is padding."""

Stream = Float[Tensor, "batch pos d_model"]
Positions = Float[Tensor, "pos d_model"]
Heads = Float[Tensor, "batch pos head d_head"]
Results = Float[Tensor, "batch pos head d_model"]
Lags = Float[Tensor, "batch lag pos d_model"]
Scores = Float[Tensor, "batch head query key"]
LogSumExp = Float[Tensor, "batch head query"]
Logits = Float[Tensor, "batch pos vocab"]
