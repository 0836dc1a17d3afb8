"""Running a part of one of our models: from a layer upwards, or from the middle of a block.

What was computed once below a change need not be computed again for every change above it.
"""

from typing import cast

from interp.models.block import Block
from interp.models.sequence import HookedSequenceModel
from interp.models.shapes import Stream
from interp.views.running import Start


def run_from(model: HookedSequenceModel, start: Start, stop: int) -> Stream:
    """The stream before layer `stop`, from a start on; hook points speak as they always do."""
    stream, layer = start.stream, start.layer
    if start.mixed is not None:
        stream = cast(Block, model.blocks[layer]).after_mixer(stream, start.mixed)
        layer += 1
    positions = None
    if model.pos_embed is not None and not model.positions_enter_stream:
        positions = model.hook_pos_embed(model.pos_embed(stream.shape[1]).expand_as(stream))
    for block in model.blocks[layer:stop]:
        stream = block(stream, positions, None)
    return stream
