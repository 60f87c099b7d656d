"""How other engines serve what was exported: what each is known to do, and what it does when it is run here."""
