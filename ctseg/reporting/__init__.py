"""How results look: tables, sentences, pages. No torch."""
