"""How results look: plots and the report page. No torch."""
