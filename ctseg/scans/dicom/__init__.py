"""DICOM: CT series, segmentations (SEG) and contours (RTSTRUCT), read and written."""
