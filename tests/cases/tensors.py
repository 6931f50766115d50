"""How tensors of cases lie in memory, and what moves them by a rounding."""

import torch


def generator_of(seed):
    return torch.Generator().manual_seed(seed)


def laid_out(tensor, layout):
    """`tensor` with the same values in another memory layout ("expanded" repeats its first row).

    contiguous | transposed (last two dimensions swapped in memory: chunked parameters) | chunked (that, but
    matrices contiguous) | sliced (every other row and column of a larger tensor) | misaligned (starts one element after
    an allocation) | expanded (batch stride 0)
    """
    if layout == "transposed" or (layout == "chunked" and tensor.dim() > 2):
        return tensor.mT.contiguous().mT
    if layout == "sliced":
        wide = tensor.new_full([2 * n + 1 for n in tensor.shape], float("nan"))
        view = wide[tuple(slice(1, 2 * n + 1, 2) for n in tensor.shape)]
        return view.copy_(tensor)
    if layout == "misaligned":
        return tensor.new_empty(tensor.numel() + 1)[1:].view(tensor.shape).copy_(tensor)
    if layout == "expanded":
        return tensor[:1].expand(tensor.shape)
    return tensor.contiguous()


def moved(tensor, samples, seed=5):
    """Copies with each element moved by ± one rounding of the largest element of its row."""
    size = tensor.abs()
    if tensor.numel() > 0:
        size = size.amax(-1, keepdim=True)
    sign = torch.randint(0, 2, (samples, *tensor.shape), generator=generator_of(seed)) * 2 - 1
    return tensor + torch.finfo(tensor.dtype).eps / 2 * size * sign.to(tensor.device)


def lost(evaluate, tensors, want, samples, still=()):
    """{name: the largest error of each element of evaluate(tensors)} for what `want` holds, also when tensors move by
    one rounding: one sum may be right by chance.

    still: names of tensors that do not move.
    """
    copies = {k: moved(v, samples, seed) for seed, (k, v) in enumerate(tensors.items()) if k not in still}
    inputs = [tensors, *(tensors | {k: v[i] for k, v in copies.items()} for i in range(samples))]
    results = [evaluate(given) for given in inputs]
    return {k: torch.stack([(r[k].double() - v).abs() for r in results]).amax(0) for k, v in want.items()}
