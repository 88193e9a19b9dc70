"""The catalogue's items, as producers send them and as Freshet tells its roles of them."""
