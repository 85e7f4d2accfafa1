"""The demo: an image or a drawing in, the likeliest classes out; a page here, or a Space of the Hub."""
