"""Images: where they lie, how they become raw RGB bytes, and the demo's digits."""
