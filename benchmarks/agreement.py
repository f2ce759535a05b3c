"""Are the embeddings right? Every row of the quickstart against plain transformers, one text at a time.

    make quickstart && .venv/bin/python benchmarks/agreement.py

No batch and no padding on the reference's side. Prints the smallest cosine and the largest difference of all rows;
ends with 1 if a cosine is under 0.9999.
"""

from __future__ import annotations

import sys

import numpy as np
import pyarrow.dataset as ds
import torch
from transformers import AutoModel, AutoTokenizer

MODEL, OUTPUT = "models/all-MiniLM-L6-v2", "out/quickstart/data"


def main() -> None:
    table = ds.dataset(OUTPUT).to_table(columns=["text", "embedding"])
    made = np.stack(table["embedding"].to_numpy())
    tokenizer, model = AutoTokenizer.from_pretrained(MODEL), AutoModel.from_pretrained(MODEL).eval()
    cosines, differences = [], []
    for text, vector in zip(table["text"].to_pylist(), made, strict=True):
        with torch.inference_mode():
            hidden = model(**tokenizer(text, truncation=True, max_length=512, return_tensors="pt"))[0][0]
        expected = hidden.mean(dim=0).numpy()
        expected /= np.linalg.norm(expected)
        cosines.append(float(expected @ vector))
        differences.append(float(np.abs(expected - vector).max()))
    print(f"{len(cosines):,} rows, smallest cosine {min(cosines):.7f}, largest difference {max(differences):.2e}")
    sys.exit(min(cosines) < 0.9999)


if __name__ == "__main__":
    main()
