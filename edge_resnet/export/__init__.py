"""Writers: a Graph becomes a file of one runtime. They translate, and decide nothing about numbers."""
