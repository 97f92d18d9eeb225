"""Images and masks as arrays: loading, resizing, patches, run-length codes, polygons, drawing."""
