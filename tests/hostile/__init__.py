"""What a hostile or careless client, file or template may send: named cases, and seeded generators of more."""
