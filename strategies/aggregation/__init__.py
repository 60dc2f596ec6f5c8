"""Server side: how the replies of a round become the new global model."""
