"""Names, folders, tables and archives -> splits of images and labels."""
