"""Detectors: networks that cannot be traced whole, because boxes, anchors and post-processing decide on values.

detector + images
  | observe        one run with hooks: what every module is given and gives         observation.py
  | join           the largest traceable modules, wired where one's output is another's input     tensor_part.py
  v
tensor part        one module, analysed, pruned and timed as any network
  | put back       its slim layers in a copy of the detector, of the same classes   put_back.py
  v
slim detector      losses in train mode, boxes in eval mode
"""
