"""Benchmarks, results as data, and the texts that show them.

Each benchmark is a module with a `row`, whose sides take turns within one process:

- mnist_loader, cifar_loader: a pass over all batches, no model; CIFAR-10 with random crop and flip.
- mnist_mlp: an epoch of MNIST, MLP 784-512-10, fp32.
- mnist_convnet: an epoch of MNIST, ftkit's convnet, bf16.
- cifar_resnet18: the data's share of a training step of timm's ResNet-18 at 32 x 32 pixels.
- augmentation: crop, flip and cutout of a batch, against torchvision image by image.
- cache: decoding PNG files into the tensor cache, against PIL on all cores; and the next start.
- memory: how far a process grows while it decodes CIFAR-10 and trains on it, without its decoding workers.
- stream: JPEG files to 224 pixels by the streaming engine, against decoding alone on all cores, and against decoding
  and the same resizing.
- linear_probe: a linear probe on features that are computed once, against the frozen body at every epoch.
- default_run: the default command, timed from the shell.

The rows share `timing`, `data`, `sides`, `decoding` and `command`. `trained` measures recipes and exports,
`record` stores results, `tables` shows them, and `texts` writes them into README, guides and the heads of recipes.
"""

ROWS = (
    "mnist_loader", "cifar_loader", "mnist_mlp", "mnist_convnet", "cifar_resnet18", "augmentation", "cache", "memory",
    "stream", "linear_probe", "default_run",
)  # fmt: skip
