"Logits, truths and what is known of them, for the tests of the losses."
import torch


def loss_case(seed, B=3, C=5, space=(4, 6), per_pixel=False, unlabelled=True, dtype=torch.float64):
    "Logits [B,C+1,…], a valid truth (labelled classes are known), known cells, pixel weights [B,1,…]."
    g = torch.Generator().manual_seed(seed)
    mask = torch.randint(0, C + 1, (B, *space), generator=g)
    known = torch.rand(B, C, generator=g) < .5
    if unlabelled: known[-1] = False
    if per_pixel:  # as after CutMix: a box comes from the next image
        box = torch.zeros(space, dtype=torch.bool)
        box[1:3, 2:5] = True
        cells = known.reshape(B, C, *[1]*len(space))
        known = torch.where(box, cells.roll(1, 0), cells)
        written = torch.cat([torch.ones_like(known[:, :1]), known], 1).gather(1, mask[:, None])[:, 0]
    else:
        written = (
            torch.cat([torch.ones_like(known[:, :1]), known], 1).gather(1, mask.flatten(1)).view_as(mask)
        )
    mask = mask*written
    logits = 3*torch.randn(B, C + 1, *space, generator=g, dtype=dtype)
    weight = torch.rand(B, 1, *space, generator=g, dtype=dtype)*(torch.rand(B, 1, *space, generator=g) < .8)
    return logits, mask, known, weight


def channels(loss, logits):
    "The logits that a loss wants, ready for a gradient."
    C = logits.shape[1] - 1
    return logits[:, :loss.out_chans(C)].contiguous().requires_grad_()


def certain(known, mask, pixel_known):
    "What is known of each (class, pixel): bool [B,C,…]."
    cells = known if known.ndim > 2 else known.reshape(*known.shape, *[1]*(mask.ndim - 1))
    cells = cells.expand(*known.shape[:2], *mask.shape[1:])
    return cells | (mask > 0)[:, None] if pixel_known else cells
