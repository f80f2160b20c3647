"""One adapter's matrices as views of flat tensors: the trained fp32 numbers, their gradient, and a copy for products.

Dimensions: r: the adapter's rank; in, out: sizes of an adapted layer's input and output.
"""

import torch


class Adapter:
    """LoRA's matrices A and B of every adapted layer (arXiv 2106.09685).

    A layer's output gets ``scale * x @ A.T @ B.T`` added. All trained numbers are one flat tensor, and so are their
    gradient and the copy that products are made with: clipping, an optimizer's step and a checkpoint are then a few
    operations instead of hundreds. So only optimizers that treat every number by itself can train an adapter.

    Attributes:
        a, b: by module name: A [r, in] and B [out, r], in the dtype of the products.
        numbers: [n], fp32: all matrices, one after another.
        gradient: [n], fp32; None where the adapter is not trained.
        grad_a, grad_b: the gradient's matrices, by module name.
        scale: ``lora_alpha / r``, or ``lora_alpha / sqrt(r)`` with rsLoRA.
        dropout: probability that a number of a layer's input is dropped in training.
        seed: decides, with the position in the training, which numbers are dropped.
    """

    def __init__(
        self, a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], scale: float, dropout: float, seed: int
    ) -> None:
        self.scale, self.dropout, self.seed = scale, dropout, seed
        self.shapes = {name: (a[name].shape, b[name].shape) for name in a}
        self.numbers = torch.cat([matrix.detach().float().flatten() for name in a for matrix in (a[name], b[name])])
        self.gradient: torch.Tensor | None = None
        self.grad_a: dict[str, torch.Tensor] = {}
        self.grad_b: dict[str, torch.Tensor] = {}
        self.set_dtype(torch.float32)

    def set_dtype(self, dtype: torch.dtype) -> None:
        """Use matrices in ``dtype`` for products from now on."""
        self.copy = self.numbers if dtype == torch.float32 else self.numbers.to(dtype)
        self.a, self.b = self.split_matrices(self.copy)

    def allocate_gradient(self) -> None:
        """Make room for a gradient of zeros, to which every backward adds."""
        self.gradient = torch.zeros_like(self.numbers)
        self.grad_a, self.grad_b = self.split_matrices(self.gradient)

    def update_copy(self) -> None:
        """Bring the matrices up to date after ``numbers`` were changed in place."""
        if self.copy is not self.numbers:
            self.copy.copy_(self.numbers)

    def split_matrices(self, flat: torch.Tensor) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The matrices A and B, by module name, as views of a flat tensor [n]."""
        a, b, begin = {}, {}, 0
        for name, (shape_a, shape_b) in self.shapes.items():
            a[name] = flat[begin : begin + shape_a.numel()].view(shape_a)  # [r, in]
            begin += shape_a.numel()
            b[name] = flat[begin : begin + shape_b.numel()].view(shape_b)  # [out, r]
            begin += shape_b.numel()
        return a, b
