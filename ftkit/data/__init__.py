"""Data: a name, a folder or the Hub -> `DatasetDict` -> uint8 tensors -> batches."""
