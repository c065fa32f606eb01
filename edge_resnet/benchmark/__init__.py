"""What is measured, and how: latency, cold start, memory, and the intervals of accuracies."""
