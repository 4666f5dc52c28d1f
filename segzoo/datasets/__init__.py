"""Data sets for segmentation: files in folders as pictures and masks; nothing is downloaded."""

from segzoo.datasets.bands import BandStatistics, band_statistics
from segzoo.datasets.base import Sample, SegmentationDataset
from segzoo.datasets.camvid import CamVid
from segzoo.datasets.cityscapes import Cityscapes, MiniCity
from segzoo.datasets.duts import DUTS, ECSSD
from segzoo.datasets.folder import PairedFolder, Unpaired
from segzoo.datasets.statistics import PixelCounts, count_pixels
from segzoo.datasets.voc import SBD, VOC

__all__ = [
    "DUTS",
    "ECSSD",
    "SBD",
    "VOC",
    "BandStatistics",
    "CamVid",
    "Cityscapes",
    "MiniCity",
    "PairedFolder",
    "PixelCounts",
    "Sample",
    "SegmentationDataset",
    "Unpaired",
    "band_statistics",
    "count_pixels",
]
