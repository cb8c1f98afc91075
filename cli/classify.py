"""Classify texts with a finished checkpoint in a fresh process: `python -m cli.classify FOLDER TEXT …`."""

import json
import sys

from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import jactus_core  # noqa: F401 - teaches transformers the checkpoint's model type

folder, *texts = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(folder)
tokenizer = AutoTokenizer.from_pretrained(folder)
print(json.dumps(pipeline("text-classification", model=model, tokenizer=tokenizer)(texts)))
