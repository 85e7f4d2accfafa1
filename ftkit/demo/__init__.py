"""The demo: a page that classifies an image or a drawing, served locally or as a Space on the Hub."""
