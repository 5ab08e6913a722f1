"""Outputs: faces as text (JSONL, CSV, WIDER FACE, COCO), and annotated video and pictures."""
