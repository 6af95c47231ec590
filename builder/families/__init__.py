"""Model families, one file each: how an export is recognized, its names, strides, layout and head."""
