"""The architectures, one file each: its class, then its factories. Factories are found through ``segzoo`` itself."""

from segzoo.models._conversion import Conversion, convert_checkpoint
from segzoo.models.base import EncoderModel, SegmentationModel
from segzoo.models.deeplab import DeepLabV3, DeepLabV3Plus
from segzoo.models.fcn import FCN, FCN8s
from segzoo.models.fpn import FPN
from segzoo.models.isnet import ISNet
from segzoo.models.lraspp import LRASPP
from segzoo.models.parameters import param_groups
from segzoo.models.pspnet import PSPNet
from segzoo.models.segformer import SegFormer
from segzoo.models.u2net import U2Net
from segzoo.models.unet import UNet
from segzoo.models.unet_plusplus import UNetPlusPlus

__all__ = [
    "FCN",
    "FPN",
    "LRASPP",
    "Conversion",
    "DeepLabV3",
    "DeepLabV3Plus",
    "EncoderModel",
    "FCN8s",
    "ISNet",
    "PSPNet",
    "SegFormer",
    "SegmentationModel",
    "U2Net",
    "UNet",
    "UNetPlusPlus",
    "convert_checkpoint",
    "param_groups",
]
