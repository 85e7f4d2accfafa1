"""Situations in which ftkit recommends settings: each module lists those of its part as `CASES`."""

# Places whose advice leads to a run that is no plain one: where it is followed, or what it would take.
ELSEWHERE = {
    "config.contradictions:_check_sharded#2": "a launch of several processes",
    "config.machine:check_machine#2": "a launch of several processes",
    "methods.adalora:AdaLora.contradictions#2": "a launch of several processes",
    "methods.checks:_check_weights#4": "a Hub to push to",
    "methods.adapters:merged#2": "an adapter of PEFT that leaves a module of its own; none of today's does",
    "methods.adapters:merged#3": "an adapter of PEFT that merges wrongly: tests/methods/test_adapters.py",
    "training.loop.explained:explained": "an operation of a GPU: tests/test_devices.py",
}
