"""How knowledge is kept from doing harm: shapes of the bound compared."""
