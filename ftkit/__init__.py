"""ftkit: train and fine-tune image classifiers the Hugging Face way, and know what you got."""

__version__ = "0.1.0"
