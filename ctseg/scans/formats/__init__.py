"""One file per format: bytes in, a volume and findings out. Also the checks that all of them share."""
