"""Machines with too little memory or disk for what is asked."""

from support import MLP, train

from ftkit.training.loop.trainer import ImageTrainer

TINY = ["--dataset", "digits", "--max_train_samples", 40, "--max_steps", 2, "--data_engine", "tensor"]


def small_memory(free):
    """A function that sets how many bytes of main memory are free."""
    return lambda monkeypatch: monkeypatch.setattr("ftkit.training.stages.memory.available_memory", lambda: free)


def large_batches(folder, monkeypatch):
    small_memory(60e6)(monkeypatch)
    sizes = ["--per_device_train_batch_size", 40, "--image_size", 64]
    return [*TINY, "--model", "convnet", *sizes]


def large_images(folder, monkeypatch):
    small_memory(20e6)(monkeypatch)
    return [*TINY, "--model", "convnet", "--image_size", 256]


def large_evaluation(folder, monkeypatch):
    run = train(folder / "trained", *TINY, "--model", "convnet", "--image_size", 64).folder
    small_memory(60e6)(monkeypatch)
    return "eval", ["--model", run]


def small_disk(folder, monkeypatch):
    monkeypatch.setattr("ftkit.data.pixels.cache.free_bytes", lambda folder: 1000)
    return [*TINY, *MLP, "--cache_dir", folder / "cache"]


def failing_allocation(folder, monkeypatch):
    backward = ImageTrainer._backward

    def short_of_memory(self, model, inputs, *others, **more):
        if len(inputs["pixel_values"]) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9600000000 bytes.")
        return backward(self, model, inputs, *others, **more)

    monkeypatch.setattr(ImageTrainer, "_backward", short_of_memory)
    return [*TINY, *MLP, "--per_device_train_batch_size", 32]


CASES = {
    "training.stages.memory:_check_stage": large_batches,
    "training.stages.memory:check_evaluation": large_evaluation,
    "training.stages.memory:_check_least": large_images,
    "data.pixels.cache:check_room": small_disk,
    "memory:enough_memory": failing_allocation,
}
