"""A trained model, in whatever form it comes, becomes a Graph."""
