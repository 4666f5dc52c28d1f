"""What the outputs of published checkpoints are called, in their order.

Sources:
    ``VOC``: Everingham et al., The Pascal Visual Object Classes Challenge 2012, after the background.
    ``COCO``: Lin et al., Microsoft COCO, 2014: the numbers of its annotations up to 90, of which they leave out ten.
    ``ADE20K``: Zhou et al., Scene Parsing through ADE20K Dataset, CVPR 2017: the 150 classes of its scene parsing
    benchmark, each by one of its names, as NVIDIA's checkpoints call them; the first is the benchmark's number 1, for
    its 0 is what nobody labelled.
    ``CITYSCAPES``: Cordts et al., The Cityscapes Dataset, CVPR 2016: the 19 classes that count, by train id.
"""

from __future__ import annotations

__all__ = ["ADE20K", "CITYSCAPES", "COCO", "SALIENT", "VOC"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(", "))


SALIENT = _names("foreground")

VOC = _names(
    "background, aeroplane, bicycle, bird, boat, bottle, bus, car, cat, chair, cow, dining table, dog, horse, "
    "motorbike, person, potted plant, sheep, sofa, train, tv monitor"
)

COCO = _names(
    "background, person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light, fire "
    "hydrant, N/A, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant, bear, zebra, "
    "giraffe, N/A, backpack, umbrella, N/A, N/A, handbag, tie, suitcase, frisbee, skis, snowboard, sports ball, "
    "kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle, N/A, wine glass, cup, "
    "fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot, hot dog, pizza, donut, cake, "
    "chair, couch, potted plant, bed, N/A, dining table, N/A, N/A, toilet, N/A, tv, laptop, mouse, remote, "
    "keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, N/A, book, clock, vase, scissors, teddy "
    "bear, hair drier, toothbrush"
)

ADE20K = _names(
    "wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk, person, earth, door, "
    "table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf, house, sea, mirror, rug, field, "
    "armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub, railing, cushion, base, box, column, signboard, "
    "chest of drawers, counter, sand, sink, skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, "
    "case, pool table, pillow, screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, "
    "book, hill, bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar, arcade machine, "
    "hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth, television receiver, airplane, "
    "dirt track, apparel, pole, land, bannister, escalator, ottoman, bottle, buffet, poster, stage, van, ship, "
    "fountain, conveyer belt, canopy, washer, plaything, swimming pool, stool, barrel, basket, waterfall, tent, bag, "
    "minibike, cradle, oven, ball, food, step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, "
    "screen, blanket, sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate, "
    "monitor, bulletin board, shower, radiator, glass, clock, flag"
)

CITYSCAPES = _names(
    "road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person, "
    "rider, car, truck, bus, train, motorcycle, bicycle"
)
