"""COCO metrics and the reports made from them."""
