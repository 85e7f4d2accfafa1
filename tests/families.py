"""The kinds of models that are tested alike. By itself, since conftest.py must not import what takes seconds."""

FAMILIES = ["mlp", "convnet", "timm/test_resnet", "timm/test_vit", "vit"]
