"""What comes in: scans and masks in the formats that people bring. No torch."""
