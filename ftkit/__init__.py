"""ftkit: train and fine-tune image classifiers the Hugging Face way."""

__version__ = "0.1.0"
