"""What a comparison and the search before it share."""
