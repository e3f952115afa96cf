"""The faces of the catalog: charts, pages and the command line; importing this costs nothing."""
