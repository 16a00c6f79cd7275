"""How a trained network predicts: windows, locator, guides, masks on the scan (torch)."""
